"""Records made by hand, and a small artefact folder to lay them out in: no tests by themselves."""

import json

import numpy as np

from fsr_lab.core.analysis import AnalysisRecord
from fsr_lab.core.provenance import Provenance
from fsr_lab.core.record import EvaluationRecord
from fsr_lab.core.threat import Threat

FOUR = ("fgsm", "pgd20", "pgd100", "cw30")
SETTINGS = {
    "fgsm": "PGD(steps=1, relative_step=1.0)", "pgd20": "PGD(steps=20, relative_step=0.1)",
    "pgd100": "PGD(steps=100, relative_step=0.1)", "cw30": "PGD(steps=30, loss=Margin)",
}  # fmt: skip

MANIFEST = """
title: "Table 0: two methods"
make: make table0
runs: ["{scale}", "{scale}_more"]
scales: {smoke: linf 0.12, cpu: linf 8/255, paper: linf 8/255}
panels:
  - title: a network on some images
    columns: {Natural: Natural, PGD-20: PGD-20, Ensemble: Ensemble, AutoAttack: null}
    groups:
      - - {name: AT, experiment: table0/at, expected: at}
        - {name: AT+FSR, experiment: table0/at_fsr, expected: at_fsr}
notes:
  - {rows: [at], columns: [PGD-20], text: This number does not fit.}
"""
EXPECTED = {
    "source": "a paper",
    "rows": {
        "at": {
            "table": "0",
            "row": "a network, AT",
            "values": {"Natural": "80.10", "PGD-20": "50.2", "Ensemble": "45"},
        },
        "at_fsr": {"table": "0", "row": "a network, AT+FSR", "values": {"Natural": "79.00", "Ensemble": "48"}},
    },
}


def provenance(seed=0, weights="w", data="d"):
    return Provenance(
        command="fsr train", revision="0123456789abcdef", dirty=False, versions={"python": "3.11.7", "torch": "2.15.0"},
        hashes={"data": data, "weights": weights},
        host={"processor": "a processor", "threads": "2", "accelerator": "none"}, seed=seed,
    )  # fmt: skip


def made_record(
    rates, *, name="AT (last)", n=100, seed=0, weights=None, data="d", eps="8/255", settings=SETTINGS, findings=(),
    chains=None, first=0,
):  # fmt: skip
    """Return a record of n samples: {attack: how many withstand it}, the same ones first, or the rows themselves."""
    rows = np.array([
        rate if np.ndim(rate) else (np.arange(n) < rate) for rate in rates.values()
    ], dtype=np.int8)  # fmt: skip
    n = rows.shape[1]
    return EvaluationRecord(
        attacks=tuple(rates), outcome=rows, margin=np.zeros(rows.shape, np.float32),
        norm=np.zeros(rows.shape, np.float32), ids=np.arange(first, first + n), labels=np.zeros(n, np.int64),
        forwards=np.full(len(rows), n), backwards=np.zeros(len(rows), np.int64), threat=Threat(norm="linf", eps=eps),
        precision="float32", chunk=500, settings={key: text for key, text in settings.items() if key in rates},
        findings=tuple(findings), chains=chains or {},
        provenance=provenance(seed, weights or f"{name}{seed}{rates}", data), name=name,
    )  # fmt: skip


def rates(clean, worst):
    """Return what `made_record` takes of the paper's protocol: FGSM leaves two more than the rest."""
    return {"clean": clean, "fgsm": worst + 2, "pgd20": worst, "pgd100": worst, "cw30": worst}


def made_artefact(folder, manifest=MANIFEST, expected=EXPECTED):
    """Write an artefact folder without records, and return it."""
    folder.mkdir(parents=True)
    (folder / "manifest.yaml").write_text(manifest)
    if expected is not None:
        (folder / "expected.json").write_text(json.dumps(expected))
    return folder


def kept(folder, root, experiment, seed=0):
    """Return where an artefact keeps a run."""
    return folder / "records" / root / experiment / f"seed={seed}"


def made_analysis(kind, *, name="AT+FSR (last)", seed=0, n=6, size=8):
    """Return an analysis of a kind, as fsr analyze leaves it, of made-up values."""
    rng = np.random.default_rng(seed)
    images = {key: rng.integers(0, 256, (n, 3, size, size), dtype=np.uint8) for key in ("clean", "adversarial")}
    if kind == "attention":
        maps = ["clean image", "f_plus"]
        arrays = images | {
            "maps": rng.random((2, n, 4, 4)).astype(np.float32), "labels": np.arange(n), "predicted": np.arange(n),
            "centre": rng.random((2, n)), "correlation": np.array([[1.0] * n, [np.nan, *rng.random(n - 1)]]),
        }  # fmt: skip
        settings = {"maps": maps}
    elif kind == "mask_maps":
        histogram = rng.integers(0, 9, (2, 3, 50))
        arrays = {"histogram": histogram, "changed": rng.random(3), "images": np.full(3, n)}
        settings = {"edges": np.linspace(0, 1, 51).tolist()}
    elif kind == "feature_distance":
        arrays = {"relative": rng.random((2, n)), "cosine": rng.random((2, n)), "fooled": np.arange(n) % 2 == 0}
        settings = {"layers": ["layer1", "layer2"]}
    else:
        option = {"part": "f_plus", "bank": "train", "pooling": "pooled", "gamma": 0.1}
        options = [option | {"k": 5}, option | {"k": 20}]
        labels = np.arange(n)
        arrays = {"predicted": np.stack([labels, np.where(labels < 2, labels, 99)]).astype(np.int16), "labels": labels}
        settings = {"options": options}
    return AnalysisRecord(kind=kind, name=name, settings=settings, arrays=arrays, provenance=provenance(seed))


def made_samples(path, n=3, size=8):
    """Write the images that a run keeps."""
    rng = np.random.default_rng(0)
    clean = rng.random((n, 3, size, size)).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path, clean=clean, adversarial=np.clip(clean + 0.03, 0, 1), labels=np.arange(n), attack=np.array("pgd20"),
        predicted_clean=np.arange(n), predicted_adversarial=np.arange(n) + 1,
    )  # fmt: skip


def made_curves(run, values=((9, 0.1, 0.3), (19, 0.4, 0.5), (29, 0.3, 0.6))):
    """Write the log of a run: (step, robust, natural validation accuracy)."""
    path = run / "metrics" / "version_0" / "metrics.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["step,epoch,val/robust_acc,val/acc", *(f"{step},0,{robust},{natural}" for step, robust, natural in values)]
    path.write_text("\n".join(lines) + "\n")

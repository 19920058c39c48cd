"""From a config to an analysis on disk: its arrays, and the records of what it attacked."""

from pathlib import Path
from typing import cast

from omegaconf import DictConfig

from fsr_lab.analysis.study import Analysis, Findings, Study
from fsr_lab.core.analysis import FOLDER, AnalysisRecord
from fsr_lab.core.hashing import state_hash
from fsr_lab.core.provenance import Provenance
from fsr_lab.dataset.base import ImageDataModule
from fsr_lab.engine import build
from fsr_lab.engine.evaluating import chains, device_of, ledger_folder, loaded_network, samples


def analyze(
    cfg: DictConfig,
    weights: tuple[Path, str | None] | None,
    data: ImageDataModule,
    *,
    kind: str,
    name: str,
    command: str,
) -> tuple[AnalysisRecord, Findings]:
    """Run `cfg.analysis` on a network.

    Args:
        cfg: composed as for `fsr analyze`, with a network, its data and a threat in it.
        weights: a checkpoint or a state dict, and which of its averages; None where the network comes with its own.
        data: opened.
        kind: the analysis' option.
        name: what a table calls the network.
        command: the command line, for records.

    Raises:
        ValueError: the analysis does not concern the network, or cannot be as it was asked for.
    """
    analysis = cast(Analysis, build.build_part(cfg.analysis))
    device = device_of(cfg)
    model = loaded_network(cfg, weights).to(device)
    other, hashes = None, {"data": data.data_hash, "weights": state_hash(model.state_dict())}
    if cfg.other is not None:
        network, _ = build.build_surrogate(cfg, Path(cfg.other))
        other = network.to(device).eval()
        hashes["other"] = state_hash(other.state_dict())
    ledger = ledger_folder(cfg, model, data)
    study = Study(
        model=model, name=name, data=data, threat=build.build_threat(cfg), attacks=build.build_attacks(cfg, device),
        chains=chains(cfg), samples=samples(cfg), chunk=cfg.chunk, seed=cfg.seed, device=device, command=command,
        ledgers=None if ledger is None else ledger / kind, other=other,
    )  # fmt: skip
    found = analysis(study)
    about = Provenance.collect(command=command, seed=cfg.seed, hashes=hashes)
    settings = {**found.settings, "samples": study.samples or len(data.test.y), "threat": str(study.threat)}
    return AnalysisRecord(kind=kind, name=name, settings=settings, arrays=found.arrays, provenance=about), found


def keep(record: AnalysisRecord, found: Findings, run: Path) -> Path:
    """Write an analysis and its records below a run directory, and return where the former lies."""
    for stem, evaluated in found.records.items():
        evaluated.save(run / "records" / record.kind, stem)
    return record.save(run / FOLDER, record.kind)

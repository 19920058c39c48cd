"""Does crafting in bfloat16 find what crafting in float32 finds? Measured on trained networks, judged in float32.

Each attack is run under three policies with the same draws; outcomes are compared sample by sample.

    python experiments/speed/precision.py [--samples 1000] [--networks FOLDER]
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig
from scipy.stats import binomtest

from fsr_lab.core.crafting import REFERENCE, Policy
from fsr_lab.core.provenance import Provenance
from fsr_lab.core.record import EvaluationRecord
from fsr_lab.engine.build import build_model, build_threat
from fsr_lab.engine.checkpoints import load_weights
from fsr_lab.engine.run import opened_data
from fsr_lab.evaluation.run import evaluate
from fsr_lab.report.interval import wilson
from throughput import config

HERE = Path(__file__).parent
NETWORKS = {
    "AT": (("defense=none",), "at.pt"),
    "AT+FSR": (("defense=fsr", "defense.module.width=16"), "at_fsr.pt"),
}
"""Overrides and file of weights; ResNet-18 of width 16."""
ATTACKS = ("pgd10_train", "pgd10_trades", "pgd20")
POLICIES = {
    "float32": REFERENCE,
    "float32, channels-last, folded": Policy(channels_last=True, fold=True),
    "bfloat16, channels-last, folded": Policy(dtype="bfloat16", channels_last=True, fold=True),
}


def rows(samples: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield a line for every network, attack and policy."""
    for network, (words, file) in NETWORKS.items():
        cfg = config(*words, "model.width=16", f"test_samples={samples}")
        data = opened_data(cfg)
        model = build_model(cfg)
        load_weights(model, folder / file)
        for attack in ATTACKS:
            records = {}
            for policy, settings in POLICIES.items():
                named = {attack: attack_of(attack, settings)}
                records[policy] = evaluate(
                    model, data.test_batches(limit=samples), named, threat=build_threat(cfg), seed=0,
                    data_hash=data.data_hash,
                )  # fmt: skip
                yield {"network": network, "attack": attack, "policy": policy} | compared(records, policy, attack)


def attack_of(name: str, policy: Policy) -> Any:
    """Build a ready-made attack under a policy."""
    cfg: DictConfig = config(f"attack@val_attack={name}")
    return instantiate(cfg.val_attack, policy=policy, _convert_="all")


def compared(records: dict[str, EvaluationRecord], policy: str, attack: str) -> dict[str, Any]:
    """Return robust accuracy, and who is right under one policy alone, this one or the reference."""
    reference, ours = (records[name].correct(attack) for name in ("float32", policy))
    only_here, only_there = int((ours & ~reference).sum()), int((reference & ~ours).sum())
    discordant = only_here + only_there
    return {
        "n": len(ours), "natural": int(records[policy].correct("clean").sum()), "correct": int(ours.sum()),
        "only_here": only_here, "only_there": only_there,
        "p": float(binomtest(only_here, discordant).pvalue) if discordant else 1.0,
        "weights": records[policy].provenance.hashes["weights"], "data": records[policy].provenance.hashes["data"],
    }  # fmt: skip


def page(content: dict[str, Any]) -> str:
    """Return the page."""
    lines = [
        f"| {row['network']} | {row['attack']} | {row['policy']} | {100 * row['correct'] / row['n']:.1f} "
        f"{_interval(row)} | {row['only_here']} | {row['only_there']} | {row['p']:.2f} |"
        for row in content["rows"]
    ]
    first = content["rows"][0]
    natural = {row["network"]: 100 * row["natural"] / row["n"] for row in content["rows"]}
    about = content["provenance"]
    return f"""# Crafting in bfloat16 beside crafting in float32

Made by `python experiments/speed/precision.py`. ResNet-18 of width 16, two epochs of AT on CIFAR-10 in
`precision=bf16-mixed` ({content["training"]}); weights in `networks/`. The first {first["n"]} test images, eps 8/255,
the same draws under every policy, outcomes judged in float32. Natural accuracy:
{", ".join(f"{name} {value:.1f}" for name, value in natural.items())} %.

Robust accuracy in percent with Wilson's 95 % interval; *only here* and *only in float32* count the samples that
withstand under one of the two alone; p is McNemar's, exact.

| network | attack | crafted in | robust accuracy | only here | only in float32 | p |
|---|---|---|--:|--:|--:|--:|
{chr(10).join(lines)}

{about["host"]["processor"]}, revision {about["revision"][:10]}{" (modified)" if about["dirty"] else ""}, torch
{about["versions"]["torch"]}, seed 0, data {first["data"]}, weights
{", ".join(dict.fromkeys(row["weights"] for row in content["rows"]))}.
"""


def _interval(row: dict[str, Any]) -> str:
    low, high = wilson(row["correct"], row["n"])
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--networks", type=Path, default=HERE / "networks", help="folder of the weights")
    options = parser.parse_args()
    found = []
    for row in rows(options.samples, options.networks):
        found.append(row)
        print(row, flush=True)
    command = f"python experiments/speed/precision.py --samples {options.samples}"
    content = {
        "rows": found, "training": json.loads((options.networks / "about.json").read_text())["command"],
        "provenance": Provenance.collect(command=command, seed=0, hashes={}).as_dict(),
    }  # fmt: skip
    (HERE / "precision.json").write_text(json.dumps(content, indent=1) + "\n")
    (HERE / "precision.md").write_text(page(content))


if __name__ == "__main__":
    main()

"""What an evaluation costs beside what it replaces: the paper's protocol, AutoAttack, queries.

In one process, equal hyper-parameters, on the trained networks of `networks/` and real CIFAR-10 images.

    python experiments/speed/evaluation.py [--rounds 3] [--samples 64] [--autoattack-samples 96] [--into evaluation]

bfloat16 is measured where the processor has instructions for it.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyautoattack
import torch
from hydra.utils import instantiate
from torch import Tensor

import textbook
from fsr_lab.core.crafting import REFERENCE, Policy, judging
from fsr_lab.core.provenance import Provenance
from fsr_lab.core.record import CLEAN, PAPER_FOUR, EvaluationRecord
from fsr_lab.core.types import Attack
from fsr_lab.engine.build import build_model
from fsr_lab.engine.checkpoints import load_weights
from fsr_lab.engine.run import opened_data
from fsr_lab.evaluation.doctor import examine
from fsr_lab.evaluation.run import EXAMINED, evaluate
from fsr_lab.model.defended import DefendedModel
from throughput import config
from timing import Group, Work, measure

HERE = Path(__file__).parent
FAST, BF16 = Policy(channels_last=True, fold=True), Policy(dtype="bfloat16", channels_last=True, fold=True)
AUTOATTACK = ("apgd_ce", "apgd_t", "fab_t", "square")
THREAT = textbook.THREAT
HAS_BF16 = torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported()


def network() -> DefendedModel:
    """Return the AT network of `networks/`: ResNet-18 of width 16."""
    model = build_model(config("defense=none", "model.width=16"))
    load_weights(model, HERE / "networks" / "at.pt")
    return model.eval()


def images(count: int) -> tuple[Tensor, Tensor, str]:
    """Return the first test images and labels, and the data's hash."""
    data = opened_data(config("defense=none"))
    x, y = (torch.cat(parts) for parts in zip(*data.test_batches(limit=count), strict=True))
    return x, y, data.data_hash


def ready_made(names: tuple[str, ...], policy: Policy) -> dict[str, Attack]:
    """Build attacks of `conf/attack` under a policy."""
    return {
        name: instantiate(config(f"attack@val_attack={name}").val_attack, policy=policy, _convert_="all")
        for name in names
    }


def one_after_the_other(model: DefendedModel, x: Tensor, y: Tensor, attacks: Mapping[str, Attack]) -> np.ndarray:
    """Run attacks each on its own and judge each: bool (A, N), whether a sample withstood."""
    rows = []
    for attack in attacks.values():
        x_adv = attack(model, x, y)
        with judging(model) as deployed:
            rows.append((deployed(x_adv).argmax(1) == y).numpy())
    return np.stack(rows)


def paper_protocol(model: DefendedModel, x: Tensor, y: Tensor, rounds: int) -> list[dict[str, Any]]:
    """Compare ways of evaluating by the paper's four attacks with running them one after the other."""
    four = ready_made(PAPER_FOUR, REFERENCE)
    found: dict[str, Any] = {}

    def kept(name: str, work: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            found[name] = work()

        return run

    def ours(policy: Policy, **options: Any) -> Callable[[], EvaluationRecord]:
        return partial(
            evaluate, model, [(x, y)], ready_made(PAPER_FOUR, policy), threat=THREAT, seed=0, chunk=len(x),
            doctor=False, **options,
        )  # fmt: skip

    works = {
        "float32, paths shared": ("at least 1.12, bit-equal", ours(REFERENCE)),
        "float32, paths shared, BatchNorm folded": ("at least 1.25, equal outcomes", ours(FAST)),
    }
    if HAS_BF16:
        works["bfloat16, early exit, judged in float32"] = (
            "at least 3", ours(BF16, chains={"worst case": PAPER_FOUR}),
        )  # fmt: skip
    baseline = kept("baseline", partial(one_after_the_other, model, x, y, four))
    group = Group(baseline, [Work(name, target, kept(name, run), False) for name, (target, run) in works.items()])
    rows = [result._asdict() for result in measure(group, rounds)]
    with judging(model) as deployed:
        clean = (deployed(x).argmax(1) == y).numpy()
    for row in rows:
        record = found[row["name"]]
        worst = record.worst_case((CLEAN, *PAPER_FOUR))
        row["ensemble"], row["baseline_ensemble"] = int(worst.sum()), int((clean & found["baseline"].all(0)).sum())
        row["differing"] = int((worst != (clean & found["baseline"].all(0))).sum())
        if not record.chains:
            row["differing"] = int((record.outcome[1:].astype(bool) != found["baseline"]).sum())
    return rows


def autoattack_reference(model: DefendedModel, x: Tensor, y: Tensor) -> np.ndarray:
    """Run the published package's standard version: bool (N,), whether a sample withstood."""
    attack = pyautoattack.AutoAttack(model, norm="Linf", eps=THREAT.eps, version="standard", device="cpu", seed=0)
    attack.verbose = False
    x_adv, _ = attack.run_standard_evaluation(x, y, batch_size=len(x))
    with torch.no_grad():
        return (model(x_adv).argmax(1) == y).numpy()


def autoattack_ours(policy: Policy, model: DefendedModel, x: Tensor, y: Tensor) -> np.ndarray:
    """Run ours, as `evaluation=autoattack` does but for the doctor, whom the published package does not have."""
    attacks, chains = ready_made(AUTOATTACK, policy), {"autoattack": AUTOATTACK}
    record = evaluate(model, [(x, y)], attacks, threat=THREAT, seed=0, chunk=len(x), chains=chains, doctor=False)
    return record.worst_case((CLEAN, *AUTOATTACK))


AUTOATTACKS: Mapping[str, Callable[[DefendedModel, Tensor, Tensor], np.ndarray]] = {
    "pyautoattack": autoattack_reference,
    "float32, folded": partial(autoattack_ours, FAST),
    **({"bfloat16, judged in float32": partial(autoattack_ours, BF16)} if HAS_BF16 else {}),
}


def doctor_alone(model: DefendedModel, x: Tensor, y: Tensor) -> np.ndarray:
    """Examine the network, which is all that the doctor does beside an evaluation."""
    examine(model, x[:EXAMINED], y[:EXAMINED], THREAT)
    return np.empty(0)


def autoattack(count: int) -> list[dict[str, Any]]:
    """Run AutoAttack each way in a process of its own, which tells seconds, outcome and peak memory."""
    rows = []
    for name in AUTOATTACKS:
        rows.append({"name": name} | in_a_process(name, count))
        print(rows[-1], flush=True)
    return rows


def in_a_process(name: str, count: int) -> dict[str, Any]:
    """Return what `one_autoattack` tells in a process of its own."""
    command = [sys.executable, __file__, "--one", name, "--autoattack-samples", str(count)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=HERE)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def one_autoattack(name: str, count: int) -> dict[str, Any]:
    """Return what `autoattack` collects of one way."""
    torch.manual_seed(0)
    model, (x, y, _) = network(), images(count)
    with torch.no_grad():
        model(x)
    before = peak_mb(reset=True)
    start = time.perf_counter()
    withstood = {**AUTOATTACKS, "doctor": doctor_alone}[name](model, x, y)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "correct": int(withstood.sum()), "n": count, "withstood": withstood.tolist(),
            "added_mb": peak_mb() - before}  # fmt: skip


def peak_mb(*, reset: bool = False) -> float:
    """Return the highest memory of this process in MB since it began, or since the last reset, which is the present."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1e3


def queries(model: DefendedModel, x: Tensor) -> list[dict[str, Any]]:
    """Return queries a second of the attacks that search without gradients, on samples that stay to the end."""
    y = torch.zeros(len(x), dtype=torch.long)

    class Stubborn(torch.nn.Module):
        """The network, with class 0 out of reach: every query is spent."""

        def __init__(self) -> None:
            super().__init__()
            self.network, self.asked = model, 0

        def forward(self, images: Tensor) -> Tensor:
            self.asked += len(images)
            logits: Tensor = self.network(images)
            return logits + 100 * (torch.arange(logits.shape[1]) == 0)

    def per_second(stubborn: Stubborn, attack: Callable[[], object]) -> float:
        start = time.perf_counter()
        attack()
        return stubborn.asked / (time.perf_counter() - start)

    rows = []
    for name, budget in (("square", 300), ("nattack", 1300)):
        for policy in (REFERENCE, BF16 if HAS_BF16 else FAST):
            stubborn = Stubborn().eval()
            attack: Any = replace(ready_made((name,), policy)[name], queries=budget)  # type: ignore[type-var]
            rows.append(
                {"name": f"{name}, {policy}", "per_second": per_second(stubborn, partial(attack, stubborn, x, y))}
            )
    theirs = Stubborn().eval()
    released = pyautoattack.square.SquareAttack(
        theirs, norm="Linf", eps=THREAT.eps, n_queries=300, n_restarts=1, p_init=0.8, seed=0, resc_schedule=False,
        device="cpu", verbose=False,
    )  # fmt: skip
    rows.append({"name": "pyautoattack's Square", "per_second": per_second(theirs, partial(released.perturb, x, y))})
    return rows


def page(content: dict[str, Any]) -> str:
    """Return the page."""
    about, protocol, full = content["provenance"], content["paper"], content["autoattack"]
    reference = full[0]
    lines = [
        f"| {row['name']} | {row['ratio']:.2f} [{row['lowest']:.2f}, {row['highest']:.2f}] | {row['target']} | "
        f"{row['ours_ms'] / 1000:.1f} | {row['other_ms'] / 1000:.1f} | {row['ensemble']} | "
        f"{row['baseline_ensemble']} | {row['differing']} |"
        for row in protocol
    ]
    standard = [
        f"| {row['name']} | {row['seconds']:.0f} | {reference['seconds'] / row['seconds']:.2f} | "
        f"{100 * row['correct'] / row['n']:.2f} | "
        f"{sum(a != b for a, b in zip(row['withstood'], reference['withstood'], strict=True))} | "
        f"{row['added_mb']:.0f} |"
        for row in full
    ]
    asked = [f"| {row['name']} | {row['per_second']:.0f} |" for row in content["queries"]]
    return f"""# Evaluations, measured beside what they replace

Made by `{about["command"]}`. ResNet-18 of width 16 after two epochs of AT on CIFAR-10
(`networks/at.pt`), the first test images, eps 8/255.

## The paper's protocol

FGSM, PGD-20, PGD-100 and C&W on {content["samples"]} images, against the same attacks run one after the other by the
same gradient loop; seconds and ratios over {protocol[0]["rounds"]} rounds. *Differing*: outcomes that are others than
the baseline's, of all attacks, or of the worst case where only that is known.

| ours | ratio | target | seconds | baseline, s | Ensemble, right | baseline's | differing |
|---|--:|---|--:|--:|--:|--:|--:|
{chr(10).join(lines)}

The doctor, whose {EXAMINED} images do not grow with an evaluation, takes {content["doctor"]["seconds"]:.1f} s more,
and adds {content["doctor"]["added_mb"]:.0f} MB at its own peak.

## AutoAttack, standard version

Against `pyautoattack`, {reference["n"]} images in one batch, one run each in a process of its own. Targets: at least
1.3 in float32 with equal robust accuracy, at least 2.5 in bfloat16 within 0.2 points, no more memory. Without the
doctor, which the package does not have.

| | seconds | ratio | robust accuracy, % | samples that differ | memory added at the peak, MB |
|---|--:|--:|--:|--:|--:|
{chr(10).join(standard)}

## Queries a second

| attack | images a second |
|---|--:|
{chr(10).join(asked)}

{about["host"]["processor"]}, bfloat16 instructions {"present" if content["has_bf16"] else "absent"},
{about["host"]["threads"]} threads, torch {about["versions"]["torch"]}, revision {about["revision"][:10]}\
{" (modified)" if about["dirty"] else ""}, seed 0, data {content["data"]}.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--autoattack-samples", type=int, default=96)
    parser.add_argument("--into", default="evaluation", help="name of the page")
    parser.add_argument("--one", choices=[*AUTOATTACKS, "doctor"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.one:
        print(json.dumps(one_autoattack(options.one, options.autoattack_samples)))
        return
    model = network()
    command = shlex.join(["python", "experiments/speed/evaluation.py", *sys.argv[1:]])
    x, y, data_hash = images(options.samples)
    content = {
        "paper": paper_protocol(model, x, y, options.rounds), "queries": queries(model, x[:32]),
        "doctor": in_a_process("doctor", options.samples),
        "autoattack": autoattack(options.autoattack_samples), "samples": options.samples, "data": data_hash,
        "has_bf16": HAS_BF16,
        "provenance": Provenance.collect(command=command, seed=0, hashes={}).as_dict(),
    }  # fmt: skip
    (HERE / f"{options.into}.json").write_text(json.dumps(content, indent=1) + "\n")
    (HERE / f"{options.into}.md").write_text(page(content))


if __name__ == "__main__":
    main()

"""Ratios of what fsr-lab does to what it replaces, measured side by side in one process.

Every pair is timed in turn, A B A B …, after a warm-up; what is quoted is the median of the pairwise ratios, with the
smallest and the largest beside it, since a shared machine's speed drifts. Nothing here fails on a slow machine.

    python experiments/speed/bench.py [--pairs 5] [--only NAME ...]
"""

import argparse
import gc
import json
import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from hydra import compose, initialize_config_module
from lightning import Trainer
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn import functional

from fsr_lab.attack.pgd import PGD
from fsr_lab.core.crafting import Policy
from fsr_lab.core.provenance import Provenance
from fsr_lab.core.threat import Threat
from fsr_lab.engine.build import bare_step, build_model, build_module

HERE = Path(__file__).parent
THREAT = Threat(norm="linf", eps=8 / 255)
FAST = Policy(channels_last=True, fold=True)
BF16 = Policy(dtype="bfloat16", channels_last=True, fold=True)


class Pair(NamedTuple):
    """Two pieces of work; the ratio is other / ours (a speed-up) or ours / other (a cost)."""

    name: str
    target: str
    ours: Callable[[], object]
    other: Callable[[], object]
    is_cost: bool


class Result(NamedTuple):
    name: str
    target: str
    ratio: float
    lowest: float
    highest: float
    pairs: int
    ours_ms: float
    other_ms: float


def config(*overrides: str) -> DictConfig:
    """Compose a training config outside any run."""
    with initialize_config_module("fsr_lab.conf", version_base="1.3"):
        return compose("train", ["dataset=cifar10", "paths.run=unused", "label=bench", *overrides])


def batch(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Draw CIFAR-shaped images and labels."""
    return torch.rand(size, 3, 32, 32, device=device), torch.randint(0, 10, (size,), device=device)


def textbook_pgd(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> Tensor:
    """PGD as tutorials write it: trainable parameters, loss.backward(), gradients of every weight thrown away."""
    x_adv = x.clone()
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        model.zero_grad()
        functional.cross_entropy(model(x_adv), y).backward()
        x_adv = x_adv.detach() + THREAT.eps / 10 * x_adv.grad.sign()
        x_adv = torch.clamp(torch.clamp(x_adv, x - THREAT.eps, x + THREAT.eps), 0, 1)
    return x_adv


def pgd(steps: int, policy: Policy) -> PGD:
    """Build the same attack as ours."""
    return PGD(threat=THREAT, steps=steps, relative_step=0.1, random_start=False, policy=policy)


def pairs(device: torch.device, size: int) -> Iterator[Pair]:
    """Yield every comparison, built when its turn comes."""
    x, y = batch(size, device)
    model = build_model(config("defense=none")).to(device).eval()
    steps = 3
    for label, policy in (("float32, as it is", Policy()), ("float32, channels-last, folded", FAST)):
        yield Pair(
            f"PGD step, {label}, against a textbook step", "at least 1.45",
            lambda policy=policy: pgd(steps, policy)(model, x, y), lambda: textbook_pgd(model, x, y, steps), False,
        )  # fmt: skip
    yield Pair(
        "bfloat16 channels-last PGD step against float32", "at least 1.8 (with bfloat16 instructions)",
        lambda: pgd(steps, BF16)(model, x, y), lambda: pgd(steps, Policy())(model, x, y), False,
    )  # fmt: skip
    at, fsr = (in_steps(bare_step_on(config(f"defense={name}"), device), x, y) for name in ("none", "fsr"))
    yield Pair("AT+FSR training step against an AT step", "at most 1.06", fsr, at, True)
    yield lightning_pair(device)


def bare_step_on(cfg: DictConfig, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """Build the public bare step, on the bench's device."""
    with torch.device(device):
        return bare_step(cfg)


def in_steps(step: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Callable[[], object]:
    return lambda: step(x, y)


class Batches(list[tuple[Tensor, Tensor]]):
    """A list that Lightning takes for one loader, not for a collection of loaders."""


def lightning_pair(device: torch.device, steps: int = 30) -> Pair:
    """Compare `steps` steps of a fit with as many bare ones; a step takes about 100 ms on two CPU cores."""
    cfg = config("defense=none", "strategy=natural", "model.width=24", "dataset.augment=none")
    data = Batches(batch(48, device) for _ in range(steps))
    step = bare_step_on(cfg, device)
    seconds: dict[str, float] = {}

    def fit() -> None:
        module = build_module(cfg, build_model(cfg))
        trainer = Trainer(
            accelerator=device.type, devices=1, max_epochs=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, barebones=False,
            log_every_n_steps=20,
        )  # fmt: skip
        module.on_train_start = lambda: seconds.update(start=time.perf_counter())  # type: ignore[method-assign]
        module.on_train_end = lambda: seconds.update(end=time.perf_counter())  # type: ignore[method-assign]
        trainer.fit(module, data)

    def bare() -> None:
        seconds["start"] = time.perf_counter()
        for x, y in data:
            step(x, y)
        seconds["end"] = time.perf_counter()

    def timed(work: Callable[[], None]) -> Callable[[], float]:
        def run() -> float:
            work()
            return (seconds["end"] - seconds["start"]) / steps

        return run

    return Pair("Lightning step against a bare step of about 100 ms", "at most 1.03", timed(fit), timed(bare), True)


def seconds_of(work: Callable[[], object]) -> float:
    """Time one piece of work, unless it times itself and says so by returning a float."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    told = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return told if isinstance(told, float) else time.perf_counter() - start


def measure(pair: Pair, count: int) -> Result:
    """Time both in turn and take the median of the pairwise ratios."""
    seconds_of(pair.ours), seconds_of(pair.other)
    times = [(seconds_of(pair.ours), seconds_of(pair.other)) for _ in range(count)]
    ratios = [ours / other if pair.is_cost else other / ours for ours, other in times]
    ours, other = (1000 * statistics.median(column) for column in zip(*times, strict=True))
    return Result(pair.name, pair.target, statistics.median(ratios), min(ratios), max(ratios), count, ours, other)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--only", nargs="*", default=[], help="parts of names")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    results = []
    for pair in pairs(device, options.batch):
        if options.only and not any(part in pair.name for part in options.only):
            continue
        results.append(measure(pair, options.pairs))
        print(line(results[-1]), flush=True)
        gc.collect()
    about = Provenance.collect(command="make bench", seed=0, hashes={})
    cpu = torch.backends.cpu.get_cpu_capability()
    content = {"results": [result._asdict() for result in results], "batch": options.batch, "cpu": cpu,
               "bfloat16_instructions": has_bfloat16(), "provenance": about.as_dict()}  # fmt: skip
    if options.only:
        return
    (HERE / "bench.json").write_text(json.dumps(content, indent=1) + "\n")
    (HERE / "report.md").write_text(page(results, content, about))
    print(f"report: {(HERE / 'report.md').relative_to(Path.cwd()) if HERE.is_relative_to(Path.cwd()) else HERE}")


def has_bfloat16() -> bool:
    """Tell whether the processor computes in bfloat16; without, it only emulates it."""
    try:
        return any(flag in Path("/proc/cpuinfo").read_text() for flag in ("avx512_bf16", "amx_bf16"))
    except OSError:
        return False


def line(result: Result) -> str:
    return (
        f"{result.name}: {result.ratio:.3f} [{result.lowest:.3f}, {result.highest:.3f}], "
        f"{result.ours_ms:.0f} ms against {result.other_ms:.0f} ms (target: {result.target})"
    )


def page(results: list[Result], content: dict[str, object], about: Provenance) -> str:
    rows = "\n".join(
        f"| {r.name} | {r.ratio:.3f} | {r.lowest:.3f} to {r.highest:.3f} | {r.target} | {r.ours_ms:.0f} | "
        f"{r.other_ms:.0f} |"
        for r in results
    )
    return f"""# Speed, as ratios

ResNet-18 of width 64, batch {content["batch"]}, 32x32 images, unless a row says otherwise. Each row is two pieces of
work timed in turn in one process, {results[0].pairs} pairs after a warm-up: the median of the pairwise ratios, the
smallest and the largest. Made by `make bench`.

| comparison | ratio | range | target | ours, ms | other, ms |
|---|--:|--:|---|--:|--:|
{rows}

Machine: {about.host["processor"]}, {about.host["threads"]} threads, {about.host["accelerator"]} accelerator, vector
instructions {content["cpu"]}, bfloat16 instructions {"present" if content["bfloat16_instructions"] else "absent"}.
Versions: {", ".join(f"{name} {version}" for name, version in sorted(about.versions.items()))}.
Revision {about.revision[:10]}{" (modified)" if about.dirty else ""}.
"""


if __name__ == "__main__":
    sys.exit(main())

"""The speed page: what fsr-lab does beside what it replaces, measured side by side in one process.

Each piece of work is timed right after its baseline, round after round, after a warm-up; what is quoted is the median
of the pairs' ratios, with the smallest and the largest beside it, since a machine's speed drifts. Nothing fails on a
slow one.

    python experiments/speed/bench.py [--rounds 5] [--networks resnet18 ...] [--only NAME ...]
"""

import argparse
import gc
import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import torch
from lightning import Trainer
from omegaconf import DictConfig
from torch import Tensor

import textbook
from fsr_lab.attack.pgd import PGD
from fsr_lab.core.crafting import Policy
from fsr_lab.core.provenance import Provenance
from fsr_lab.engine.build import bare_step, build_model, build_module
from page import draw_growth, page
from throughput import BATCHES, LATE, config, growth, loader_share, memory, throughput
from timing import Group, Result, Work, measure

HERE = Path(__file__).parent
NETWORK_SECONDS = 0.1
"""What a network takes in a step at which Lightning's share is quoted."""
FAST = Policy(channels_last=True, fold=True)
BF16 = Policy(dtype="bfloat16", channels_last=True, fold=True)
TARGETS = {"trades": "at most 1.22", "mart": "at most 1.17"}


def batch(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Draw CIFAR-shaped images and labels."""
    return torch.rand(size, 3, 32, 32, device=device), torch.randint(0, 10, (size,), device=device)


def pgd(steps: int, policy: Policy) -> PGD:
    """Build the attack that the textbook's is compared with."""
    return PGD(threat=textbook.THREAT, steps=steps, relative_step=0.1, random_start=False, policy=policy)


def groups(device: torch.device, size: int) -> Iterator[Group]:
    """Yield every comparison, built when its turn comes."""
    x, y = batch(size, device)
    model = build_model(config("defense=none")).to(device).eval()
    steps = 3
    yield Group(
        lambda: textbook.pgd(model, x, y, steps, textbook.THREAT.eps / 10, start=False),
        [
            Work(
                f"PGD step, {label}, against a textbook step", "at least 1.45",
                partial(pgd(steps, policy), model, x, y), False,
            )
            for label, policy in (("float32, as it is", Policy()), ("float32, channels-last, folded", FAST))
        ],
    )  # fmt: skip
    yield Group(
        partial(pgd(steps, Policy()), model, x, y),
        [
            Work(
                "bfloat16 channels-last PGD step against float32", "at least 1.8 (with bfloat16 instructions)",
                partial(pgd(steps, BF16), model, x, y), False,
            )
        ],
    )  # fmt: skip
    yield training_steps(device, x, y)
    yield lightning_share(device)


def training_steps(device: torch.device, x: Tensor, y: Tensor) -> Group:
    """Compare a whole optimiser step of each strategy and defence with one of AT without a defence.

    Counting a forward as 1, an input gradient as 1 and a full backward as 2, AT is 23, TRADES 27, MART 26. Curricula
    stand at their last epoch.
    """

    def step(*overrides: str) -> Callable[[], object]:
        build = cache(lambda: bare_step_on(config("defense=none", *overrides), device))  # in the warm-up
        return lambda: build()(x, y)

    works = [Work("AT+FSR step", "at most 1.06", step("defense=fsr"), True)]
    works += [
        Work(f"{name.upper()} step", TARGETS.get(name, "reported"), step(f"strategy={name}"), True)
        for name in ("trades", "mart", "alp", "cat", "fat", "s2o")
    ]
    works += [
        Work(f"AT+{name} step", "reported", step(f"defense={name}"), True)
        for name in ("fd", "fd_dot", "cas", "cifs", "kwta", "sap")
    ]
    works += [
        Work("AT with AWP step", "reported", step("modifier=[awp]"), True),
        Work("TRADES+FSR step", "reported", step("strategy=trades", "defense=fsr"), True),
    ]
    return Group(step(), works)


def bare_step_on(cfg: DictConfig, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """Build the public bare step, on the bench's device."""
    with torch.device(device):
        return bare_step(cfg, LATE)


class Batches(list[tuple[Tensor, Tensor]]):
    """A list that Lightning takes for one loader, not for a collection of loaders."""


def lightning_share(device: torch.device, steps: int = 300) -> Group:
    """Compare steps of a fit with bare ones, on a network so small that Lightning's own milliseconds stand out.

    A network's 100 ms are added to both: within them, what a step varies by would hide the difference.
    """
    cfg = config("defense=none", "strategy=natural", "model=tiny_cnn", "dataset.augment=none")
    data = Batches(batch(4, device) for _ in range(steps))
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
            return NETWORK_SECONDS + (seconds["end"] - seconds["start"]) / steps

        return run

    work = Work("Lightning step against a bare step, 100 ms of network in each", "at most 1.03", timed(fit), True)
    return Group(timed(bare), [work])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--networks", nargs="*", default=list(BATCHES), help="of the throughput table")
    parser.add_argument("--only", nargs="*", default=[], help="parts of names of ratios: prints those, writes nothing")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    parts = {}
    if not options.only:
        parts = {"memory": memory(device), "growth": growth(device), "loader_ms": loader_share(device, options.batch)}
        print(parts, flush=True)
    results = []
    for group in groups(device, options.batch):
        works = [work for work in group.works if not options.only or any(part in work.name for part in options.only)]
        for result in measure(group._replace(works=works), options.rounds) if works else ():
            results.append(result)
            print(line(result), flush=True)
        gc.collect()
    if options.only:
        return
    rows = []
    for row in throughput(device, min(options.rounds, 3), options.networks):
        rows.append(row)
        print(row, flush=True)
        gc.collect()
    content = {
        "results": [result._asdict() for result in results], "throughput": [row._asdict() for row in rows],
        **parts, "batch": options.batch, "cpu": torch.backends.cpu.get_cpu_capability(),
        "bfloat16_instructions": has_bfloat16(),
        "provenance": Provenance.collect(command="make bench", seed=0, hashes={}).as_dict(),
    }  # fmt: skip
    (HERE / "bench.json").write_text(json.dumps(content, indent=1) + "\n")
    content = json.loads((HERE / "bench.json").read_text())
    draw_growth(content["growth"], HERE / "growth.png")
    (HERE / "report.md").write_text(page(content))
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


if __name__ == "__main__":
    main()

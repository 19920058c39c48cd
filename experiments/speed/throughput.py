"""Images per second of whole training steps, loading included, beside the textbook's; memory; how time grows."""

import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from torch import Tensor
from torch.optim import SGD

import textbook
from fsr_lab.core.types import Progress
from fsr_lab.dataset.resident import ResidentBatches
from fsr_lab.engine.build import bare_step, build_model, measure_cost
from timing import seconds_of

BATCHES = {"resnet18": 32, "vgg16": 32, "wrn34_10": 8}
"""Small: a step of WideResNet-34-10 takes ten seconds on two cores as it is."""
METHODS = {
    "AT": ("strategy=at", "defense=none"),
    "AT+FSR": ("strategy=at", "defense=fsr"),
    "TRADES+FSR": ("strategy=trades", "defense=fsr"),
}
PASSES = {"at": (20, 3), "trades": (21, 6)}
"""Forward passes' worth of a PGD-10 step: crafting, training. An input gradient counts 1, a full backward 2."""
VARIANTS = ("textbook", "torchattacks", "float32", "bfloat16")
LATE = Progress(epoch=99, max_epochs=100, step=0)


class Throughput(NamedTuple):
    """One network trained by one method. Images per second by variant; ratios to the textbook and to torchattacks.

    `shares` are the parts of the measured matrix rate that our two variants achieve.
    """

    network: str
    method: str
    batch: int
    images_per_second: dict[str, float]
    over_textbook: dict[str, tuple[float, float, float]]
    over_torchattacks: dict[str, tuple[float, float, float]]
    shares: dict[str, float]


def config(*overrides: str) -> DictConfig:
    """Compose a training config outside any run."""
    with initialize_config_module("fsr_lab.conf", version_base="1.3"):
        return compose("train", ["dataset=cifar10", "paths.run=unused", "label=bench", *overrides])


def images(count: int, side: int = 32) -> tuple[Tensor, Tensor]:
    """Draw images and labels as a data set holds them."""
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8), torch.randint(0, 10, (count,))


def our_loader(batch: int, device: torch.device, count: int = 2048) -> ResidentBatches:
    """Return our batches of images resident on the device, cropped and flipped."""
    x, y = images(count)
    return ResidentBatches(
        images=x, labels=y, batch_size=batch, seed=0, shuffle=True, augment="pad_crop_flip", device=device
    )


def step_of(variant: str, network: str, method: str, batch: int, device: torch.device) -> Callable[[], object]:
    """Return one training step on the next batch of its own loader."""
    words = (f"model={network}", *METHODS[method])
    if variant in ("float32", "bfloat16"):
        precision = "bf16-mixed" if variant == "bfloat16" else "32-true"
        with torch.device(device):
            step = bare_step(config(*words, f"precision={precision}"), LATE)
        ours = cycle_of(our_loader(batch, device))
        return lambda: step(*next(ours))
    model = build_model(config(*words)).to(device)
    is_trades = method.startswith("TRADES")
    if variant == "textbook":
        craft = textbook.trades_pgd if is_trades else textbook.pgd
    else:
        craft = textbook.published_trades_pgd() if is_trades else textbook.published_pgd()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    run = textbook.step(model, optimizer, craft, is_trades)
    theirs = textbook.endless(*images(2048), batch)
    return lambda: run(*(tensor.to(device) for tensor in next(theirs)))


def cycle_of(loader: ResidentBatches) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield an epoch's batches after another's."""
    while True:
        yield from loader


def matrix_rate(dtype: torch.dtype, device: torch.device, size: int = 2048) -> float:
    """Return the machine's matrix multiplications in FLOP/s, the best of ten."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / min(seconds_of(lambda: left @ right) for _ in range(10))


def throughput(device: torch.device, rounds: int, networks: list[str]) -> Iterator[Throughput]:
    """Time every variant in turn, round after round."""
    rates = {"float32": matrix_rate(torch.float32, device), "bfloat16": matrix_rate(torch.bfloat16, device)}
    for network in networks:
        batch = BATCHES[network]
        for method, words in METHODS.items():
            steps = {variant: step_of(variant, network, method, batch, device) for variant in VARIANTS}
            for step in steps.values():
                step()
            seconds = [{variant: seconds_of(step) for variant, step in steps.items()} for _ in range(rounds)]
            cost = measure_cost(config(f"model={network}", *words))
            crafting, training = PASSES["trades" if method.startswith("TRADES") else "at"]
            flops = 2 * batch * (crafting * cost.macs + training * cost.macs_with_aux)
            middle = {name: statistics.median(turn[name] for turn in seconds) for name in VARIANTS}
            yield Throughput(
                network, method, batch,
                {name: batch / value for name, value in middle.items()},
                {name: _ratios(seconds, "textbook", name) for name in VARIANTS[2:]},
                {name: _ratios(seconds, "torchattacks", name) for name in VARIANTS[2:]},
                {name: flops / middle[name] / rates[name] for name in VARIANTS[2:]},
            )  # fmt: skip


def _ratios(seconds: list[dict[str, float]], base: str, name: str) -> tuple[float, float, float]:
    ratios = [turn[base] / turn[name] for turn in seconds]
    return statistics.median(ratios), min(ratios), max(ratios)


def loader_share(device: torch.device, batch: int = 32) -> tuple[float, float]:
    """Return milliseconds a batch of our loader, and of the textbook's transforms in this process."""
    ours = cycle_of(our_loader(batch, device))
    slow = textbook.PerImage(*images(2048))
    next(ours)
    mine = statistics.median(seconds_of(lambda: next(ours)) for _ in range(50))
    theirs = statistics.median(seconds_of(lambda: [slow[i] for i in range(batch)]) for _ in range(10))
    return 1000 * mine, 1000 * theirs


def growth(device: torch.device) -> dict[str, dict[int, float]]:
    """Return seconds of an AT+FSR step of ResNet-18 in bfloat16, by batch size, by image side (batch 8), by steps."""

    def seconds(batch: int = 32, side: int = 32, steps: int = 10) -> float:
        words = ("precision=bf16-mixed", f"dataset.image_shape=[3,{side},{side}]", f"strategy.attack.steps={steps}")
        with torch.device(device):
            step = bare_step(config(*words), LATE)
        x, y = images(batch, side)
        x, y = x.to(device) / 255, y.to(device)
        step(x, y)
        return min(seconds_of(lambda: step(x, y)) for _ in range(2))

    return {
        "batch": {batch: seconds(batch=batch) for batch in (8, 16, 32, 64, 128)},
        "side": {side: seconds(batch=8, side=side) for side in (32, 64, 96)},
        "steps": {steps: seconds(steps=steps) for steps in (1, 5, 10, 20)},
    }


def memory(device: torch.device) -> dict[str, dict[str, float]]:
    """Return the high-water mark in MB of AT+FSR steps by network and variant, each in a process of its own."""
    found: dict[str, dict[str, float]] = {}
    for network in BATCHES:
        found[network] = {}
        for variant in VARIANTS:
            command = [sys.executable, __file__, network, variant, str(device)]
            done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parent)
            found[network][variant] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Take one step in this process and print how much memory it added at its peak, in MB."""
    network, variant, device = sys.argv[1], sys.argv[2], torch.device(sys.argv[3])
    step = step_of(variant, network, "AT+FSR", BATCHES[network], device)
    before = _peak(device)
    for _ in range(2):
        step()
    print(_peak(device) - before)


def _peak(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    main()

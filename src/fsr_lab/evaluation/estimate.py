"""How long an evaluation will take: passes that attacks tell beforehand, at a speed measured on a few images."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fsr_lab.core.crafting import Policy, crafting
from fsr_lab.core.losses import cross_entropy
from fsr_lab.core.passes import Budgeted
from fsr_lab.core.types import Attack, Classifier
from fsr_lab.evaluation.plan import Work

LONG_SECONDS = 60.0
"""Evaluations that take no longer are not announced."""


class Survivors(NamedTuple):
    """Shares of the samples that a chain has left: when it begins, and when an attack went before.

    Attributes:
        clean: right unattacked.
        attacked: right after an attack.
        known_from: where the shares are from, in words; empty where they are not known and all are taken to be left.
    """

    clean: float = 1.0
    attacked: float = 1.0
    known_from: str = ""


class Speed(NamedTuple):
    """Seconds of one image's forward, and of its gradient beside."""

    forward: float
    gradient: float


class Estimate(NamedTuple):
    """What is ahead.

    Attributes:
        forwards: at most.
        gradients: at most.
        forward_seconds: of all forwards.
        gradient_seconds: of all gradients beside.
        unknown: attacks that tell no passes, which are not counted.
    """

    forwards: float = 0.0
    gradients: float = 0.0
    forward_seconds: float = 0.0
    gradient_seconds: float = 0.0
    unknown: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Of everything."""
        return self.forward_seconds + self.gradient_seconds


def attacked(work: Work, sizes: Sequence[int], survivors: Survivors) -> float:
    """Return how many samples a work is run on, of chunks of these sizes."""
    share = 1.0
    if work.after:
        share = survivors.attacked if len(work.after) > 1 else survivors.clean
    most = float("inf") if work.limit is None else work.limit.samples
    return sum(min(most, share * size) for size in sizes)


def estimated(
    attacks: Mapping[str, Attack],
    samples: Mapping[str, float],
    num_classes: int,
    speed: Callable[[Policy, bool], Speed],
) -> Estimate:
    """Return what attacks cost at most.

    Args:
        attacks: by name.
        samples: {attack: on how many samples it is run}.
        num_classes: of the network.
        speed: of passes under a policy; asked with False, its gradient is not needed. Other networks' are taken alike.
    """
    total = Estimate()
    for name, count in samples.items():
        attack = attacks[name]
        if not count:
            continue
        if not isinstance(attack, Budgeted):
            total = total._replace(unknown=(*total.unknown, name))
            continue
        passes = attack.passes(num_classes)
        forwards, gradients = (count * sum(each) for each in zip(passes[:2], passes.elsewhere, strict=True))
        policy = getattr(attack, "policy", Policy())
        each = speed(policy, gradients > 0)
        total = Estimate(
            total.forwards + forwards,
            total.gradients + gradients,
            total.forward_seconds + forwards * each.forward,
            total.gradient_seconds + gradients * each.gradient,
            total.unknown,
        )
    return total


def told(estimate: Estimate, survivors: Survivors) -> str:
    """Return an estimate in a line."""
    counts = [f"{_count(estimate.forwards)} forwards"]
    speeds = [f"{1000 * estimate.forward_seconds / max(estimate.forwards, 1):.2g}"]
    if estimate.gradients:
        counts.append(f"{_count(estimate.gradients)} gradients")
        speeds.append(f"{1000 * estimate.gradient_seconds / estimate.gradients:.2g}")
    basis = "if every sample withstands"
    if survivors.known_from:
        basis = f"if as many withstand as {survivors.known_from}, {100 * survivors.attacked:.0f} %"
    rest = f"; not counted, as they tell no budget: {', '.join(estimate.unknown)}" if estimate.unknown else ""
    cost = f"at most {' and '.join(counts)} at {' and '.join(speeds)} ms each"
    return f"about {_duration(estimate.seconds)}: {cost} ({basis}){rest}"


def announce(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    attacks: Mapping[str, Attack],
    samples: Mapping[str, float],
    num_classes: int,
    survivors: Survivors,
) -> None:
    """Print how long attacks will take, if that is long.

    Args:
        model: the network.
        x: (N, C, H, W), images that its speed is measured on.
        y: (N,).
        attacks: by name.
        samples: {attack: on how many samples it is run}.
        num_classes: of the network.
        survivors: what the samples rest on.
    """
    known: dict[tuple[Policy, bool], Speed] = {}

    def speed(policy: Policy, with_gradient: bool) -> Speed:
        key = policy, with_gradient
        if key not in known:
            known[key] = measured(model, policy, x, y, with_gradient=with_gradient)
        return known[key]

    estimate = estimated(attacks, samples, num_classes, speed)
    if estimate.seconds > LONG_SECONDS:
        print(told(estimate, survivors), file=sys.stderr, flush=True)


def measured(model: Classifier, policy: Policy, x: Tensor, y: Tensor, *, with_gradient: bool) -> Speed:
    """Measure a network's passes as attacks make them; the random state is given back."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), crafting(model, policy, example=x) as network:
        image = x.detach().clone()
        label = y.clone()

        def forward() -> None:
            with torch.no_grad():
                network(image)

        def both() -> None:
            shown = image.detach().requires_grad_()
            torch.autograd.grad(cross_entropy(network(shown), label).sum(), shown)

        once = _seconds(forward, image.device)
        beside = max(0.0, _seconds(both, image.device) - once) if with_gradient else 0.0
    return Speed(once / len(x), beside / len(x))


def _seconds(call: Callable[[], None], device: torch.device) -> float:
    call()  # what is done only once, such as choosing an algorithm
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _count(number: float) -> str:
    return f"{number / 1e6:.1f} million" if number >= 1e6 else f"{number:,.0f}"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

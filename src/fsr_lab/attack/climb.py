"""One run of Auto-PGD: where its samples are, and the moves that they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fsr_lab.attack.step_schedule import Pace
from fsr_lab.core.threat import Threat


class Look(NamedTuple):
    """What one iterate tells of each sample: loss and whether it is misclassified, (N,); gradient, (N, C, H, W)."""

    loss: Tensor
    is_wrong: Tensor
    gradient: Tensor


@dataclass
class Climb:
    """One run's samples on their way: all that is known of them. Tensors are rebound, never written into.

    Attributes:
        x: (N, C, H, W) clean images; so are all the images below.
        y: (N,) labels.
        prepared: what the objective keeps of each sample, batch on axis 0.
        x_adv: the present iterate.
        gradient: the loss's, there.
        previous: the point that the last step was taken from.
        x_best: the point with the highest loss so far.
        gradient_best: the gradient there.
        x_fooled: the last misclassified iterate, if there is one.
        fooled: (N,) whether there is.
        pace: step sizes.
    """

    x: Tensor
    y: Tensor
    prepared: Mapping[str, Tensor]
    x_adv: Tensor
    gradient: Tensor
    previous: Tensor
    x_best: Tensor
    gradient_best: Tensor
    x_fooled: Tensor
    fooled: Tensor
    pace: Pace

    @classmethod
    def start(
        cls, x: Tensor, y: Tensor, prepared: Mapping[str, Tensor], x_adv: Tensor, look: Look, *, size: float
    ) -> Climb:
        """Return the climb at its starting point `x_adv`, with a first step of `size`."""
        return cls(
            x, y, prepared, x_adv, gradient=look.gradient, previous=x_adv, x_best=x_adv, gradient_best=look.gradient,
            x_fooled=x_adv, fooled=look.is_wrong, pace=Pace.start(look.loss, size),
        )  # fmt: skip

    def move(self, threat: Threat, *, share: float) -> None:
        """Go on by a projected step, mixed with the move before it, of which it is to be this share."""
        size = wide(self.pace.size, self.x).to(self.x)
        stepped = threat.project(threat.step(self.x_adv, self.gradient, size), self.x)
        mixed = self.x_adv + (stepped - self.x_adv) * share + (self.x_adv - self.previous) * (1 - share)
        self.x_adv, self.previous = threat.project(mixed, self.x), self.x_adv

    def see(self, look: Look) -> None:
        """Take in what the present iterate tells."""
        better = wide(look.loss > self.pace.best, self.x)
        self.x_best = torch.where(better, self.x_adv, self.x_best)
        self.gradient_best = torch.where(better, look.gradient, self.gradient_best)
        self.x_fooled = torch.where(wide(look.is_wrong, self.x), self.x_adv, self.x_fooled)
        self.fooled = self.fooled | look.is_wrong
        self.gradient, self.pace = look.gradient, self.pace.after(look.loss)

    def review(self, window: int, rho: float) -> None:
        """At a checkpoint, halve the steps that are too long and go back to the best points there."""
        self.pace = self.pace.reviewed(window, rho)
        halved = wide(self.pace.halved, self.x)
        self.x_adv = torch.where(halved, self.x_best, self.x_adv)
        self.gradient = torch.where(halved, self.gradient_best, self.gradient)

    def keep(self, rows: Tensor) -> None:
        """Let all samples go but those at these indices."""
        self.prepared = {name: value[rows] for name, value in self.prepared.items()}
        self.pace = self.pace.rows(rows)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[rows])


def wide(values: Tensor, x: Tensor) -> Tensor:
    """Return one value per sample, (N,), in a shape that broadcasts to images (N, C, H, W)."""
    return values.reshape(-1, *[1] * (x.ndim - 1))

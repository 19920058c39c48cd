"""When Auto-PGD halves a sample's step and sends it back to its best point."""

from collections.abc import Mapping
from typing import NamedTuple, Self

import torch
from torch import Tensor


def checkpoints(steps: int) -> Mapping[int, int]:
    """Return the iterations at which step sizes are reviewed, and the length of the window that ends at each.

    The first window is 22% of the steps; each is 3% shorter than the one before, down to 6%, all rounded down and at
    least 1: 22, 41, 57, 70, 80, 87, 93, 99 for 100 steps. Source: AutoAttack (Croce and Hein, 2020,
    arXiv:2003.01690), Step size selection, with the released code's rounding.
    """
    length, shrink, least = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    found: dict[int, int] = {}
    at = length
    while at <= steps:
        found[at] = length
        length = max(length - shrink, least)
        at += length
    return found


class Pace(NamedTuple):
    """Each sample's step size and what decides on halving it; every tensor is (N,). A value: methods return the next.

    Attributes:
        size: the step.
        best: highest loss seen.
        latest: loss of the last iterate.
        rises: iterates of this window that have a higher loss than the one before.
        best_before: `best` at the last checkpoint.
        halved: whether the last checkpoint halved the step.
    """

    size: Tensor
    best: Tensor
    latest: Tensor
    rises: Tensor
    best_before: Tensor
    halved: Tensor

    @classmethod
    def start(cls, loss: Tensor, size: float) -> Self:
        """Return the pace at the starting point, whose loss is `loss` (N,).

        As in the reference code, the first iterate is compared with a loss of 0, not with the start's, and the first
        checkpoint cannot halve for want of progress alone.
        """
        zero = torch.zeros_like(loss)
        return cls(torch.full_like(loss, size), loss, zero, zero, loss, torch.ones_like(loss, dtype=torch.bool))

    def after(self, loss: Tensor) -> Self:
        """Return the pace after an iterate with this loss, (N,)."""
        rises = self.rises + (loss > self.latest)
        return self._replace(best=torch.where(loss > self.best, loss, self.best), latest=loss, rises=rises)

    def reviewed(self, window: int, rho: float) -> Self:
        """Return the pace after a checkpoint that ends a window; `halved` tells who goes back to the best point.

        A step is halved where at most a share `rho` of the window's iterates rose, or where the last checkpoint left
        it alone and the best loss is what it was then: the released code's form of the two conditions of
        arXiv:2003.01690, Step size selection.
        """
        stuck = ~self.halved & (self.best_before >= self.best)
        halved = (self.rises <= rho * window) | stuck
        return self._replace(
            size=torch.where(halved, self.size / 2, self.size),
            rises=torch.zeros_like(self.rises),
            best_before=self.best,
            halved=halved,
        )

    def rows(self, keep: Tensor) -> Self:
        """Return the pace of the samples that an index or a boolean (N,) selects."""
        return type(self)(*(value[keep] for value in self))

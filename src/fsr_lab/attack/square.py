"""Square: random search with squares that shrink, by the logits alone; AutoAttack's fourth member."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fsr_lab.attack.square_moves import MOVES
from fsr_lab.core.crafting import Policy, crafting, deployed_margins
from fsr_lab.core.losses import margin
from fsr_lab.core.passes import Passes
from fsr_lab.core.threat import Threat
from fsr_lab.core.types import Classifier
from fsr_lab.core.units import fraction, whole

SCHEDULE = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Proposals after which the squares' area is halved."""
CONFIRM_EVERY = 100
"""Proposals between two looks of the deployed model at who is fooled."""


@dataclass(frozen=True, kw_only=True)
class Square:
    """Proposes to change one random square, keeps what lowers the margin, and asks for logits only.

    Source: Andriushchenko et al., 2020 (arXiv:1912.00049), Algorithms 1 to 3, with the released AutoAttack's numbers
    and order of draws, so that one seed gives the same images: place and sign of a square are drawn once for all
    samples that are left (for l2 the sign for each). A sample that is wrong, unattacked or by then, is left alone.

    Differs from the released code, never in who is fooled: of a sample not fooled the image with the smallest margin
    is returned, not the clean one. Where crafting is not computed exactly as the deployed model, that says who is
    fooled, every hundred proposals; those it does not confirm are searched on.

    Attributes:
        threat: the set searched.
        queries: proposals of a run, each one forward pass of a sample; the start costs one more. Not of the budget are
            the deployed model's passes: one to know who is right unattacked, one of each run's result, and the looks
            every hundred proposals where crafting is not exact.
        p_init: share of the image that the first squares cover.
        restarts: runs, each on the samples not fooled yet.
        policy: precision of the passes.

    Raises:
        ValueError: no proposal or run, or a share above 1.
    """

    threat: Threat
    queries: int = 5000
    p_init: float = 0.8
    restarts: int = 1
    policy: Policy = Policy()

    is_random: ClassVar[bool] = True
    exact_on_linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        whole("queries", self.queries, 1)
        whole("restarts", self.restarts, 1)
        object.__setattr__(self, "p_init", fraction(self.p_init))
        if not 0 < self.p_init <= 1:
            raise ValueError(f"expected p_init above 0 and at most 1, got {self.p_init}")

    def share(self, proposal: int) -> float:
        """Return the share of the image that the squares of a proposal cover; proposals count from 0."""
        return self.p_init * 0.5 ** sum(proposal > last for last in SCHEDULE)

    def passes(self, num_classes: int) -> Passes:
        """Return the most passes of a sample; see `Budgeted`."""
        looks = 1 if self.policy == Policy() else 1 + math.ceil(self.queries / CONFIRM_EVERY)
        return Passes(1).plus(Passes(1 + self.queries + looks).times(self.restarts))

    def __call__(self, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        """Return x_adv (N, C, H, W), detached, in the threat set around x.

        Args:
            model: maps images to logits.
            x: (N, C, H, W) in [0, 1].
            y: (N,) int64 labels.
        """
        return self._runs(None, model, x, y)

    def run_from(self, start: Tensor, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        """Return what runs that begin at `start`, put into the set, and not at a drawn point find.

        See `StartsAnywhere`. A sample that is wrong at its start is left alone there.
        """
        return self._runs(start, model, x, y)

    def _runs(self, start: Tensor | None, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():
            x, y = x.detach().clone(), y.clone()
            start = None if start is None else self.threat.project(start.detach(), x)
            found = x.clone() if start is None else start.clone()
            smallest = deployed_margins(model, found, y)
            for _ in range(self.restarts):
                left = (smallest > 0).nonzero().squeeze(1)
                if not len(left):
                    break
                best = self._search(None if start is None else start[left], model, x[left], y[left])
                values = deployed_margins(model, best, y[left])
                better = values < smallest[left]
                found[left[better]], smallest[left[better]] = best[better], values[better]
            return found

    def _search(self, start: Tensor | None, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        """Return each sample's best image of one run."""
        drawn, propose = MOVES[self.threat.norm]
        best = self.threat.project(drawn(x, self.threat.eps), x) if start is None else start.clone()
        with crafting(model, self.policy, example=x) as attacked, torch.no_grad():
            margins = margin(attacked(best), y)
        is_exact = self.policy == Policy()
        left, goal = torch.arange(len(x), device=x.device), torch.zeros_like(margins)
        rows = left
        for first in range(0, self.queries, CONFIRM_EVERY):
            with crafting(model, self.policy, example=x) as attacked, torch.no_grad():
                for proposal in range(first, min(first + CONFIRM_EVERY, self.queries)):
                    rows = rows[margins[rows] > goal[rows]]
                    if not len(rows):
                        break
                    side = math.sqrt(self.share(proposal) * x.shape[-1] * x.shape[-2])
                    here = x[rows]
                    image = self.threat.project(propose(here, best[rows], side, self.threat.eps), here)
                    values = margin(attacked(image), y[rows])
                    lower = values < margins[rows]
                    best[rows[lower]], margins[rows[lower]] = image[lower], values[lower]
            if not is_exact:
                left = left[deployed_margins(model, best[left], y[left]) > 0]
                rows = left
                # the next look is at something better than what was not confirmed
                goal[rows] = margins[rows].clamp_max(0).nextafter(torch.full_like(margins[rows], -torch.inf))
            if not len(rows):
                break
        return best

"""Projected gradient descent and its relatives; FGSM, BIM, PGD-k and the C&W-loss attack are YAMLs of this file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fsr_lab.core.crafting import Policy, crafting
from fsr_lab.core.objective import CrossEntropy, OnLogits
from fsr_lab.core.threat import Threat
from fsr_lab.core.types import Classifier, Objective
from fsr_lab.core.units import fraction


@dataclass(frozen=True, kw_only=True)
class PGD:
    """Steepest ascent on an objective, projected after each step; returns the last iterate.

    Source: Madry et al., 2018 (arXiv:1706.06083); FGSM is its one full step (Goodfellow et al., 2015,
    arXiv:1412.6572). The order within a step is: move, project on the ball, clip to [0, 1].

    Attributes:
        threat: the set searched.
        steps: number of gradient steps.
        relative_step: step size as a fraction of eps.
        random_start: start at a uniform point of the set, not at the clean image.
        objective: what is raised, summed over the batch, so that the batch size changes nothing.
        policy: precision of the crafting passes.

    Raises:
        ValueError: fewer than one step, or a step size that is no number of at least 0.
    """

    threat: Threat
    steps: int
    relative_step: float
    random_start: bool
    objective: Objective = OnLogits(CrossEntropy())
    policy: Policy = Policy()

    exact_on_linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"expected at least 1 step, got {self.steps}")
        object.__setattr__(self, "relative_step", fraction(self.relative_step))

    def __call__(self, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        """Return x_adv (N, C, H, W), detached, in the threat set around x.

        Args:
            model: maps images to logits.
            x: (N, C, H, W) in [0, 1].
            y: (N,) int64 labels.
        """
        return self.iterates(model, x, y, at=(self.steps,))[self.steps]

    def iterates(self, model: Classifier, x: Tensor, y: Tensor, *, at: Sequence[int]) -> Mapping[int, Tensor]:
        """Return the iterate after each of the step counts `at`, detached: PGD-20 on the way to PGD-100."""
        found: dict[int, Tensor] = {}
        with crafting(model, self.policy, example=x) as attacked:
            # clones: inference tensors, as Lightning's validation hands them over, cannot enter autograd
            x, y = x.detach().clone(), y.clone()
            with torch.no_grad():
                prepared = self.objective.prepare(attacked, x, y)
            x_adv = self.threat.random_start(x) if self.random_start else x
            for step in range(1, max(at) + 1):
                x_adv = x_adv.detach().requires_grad_()
                value = self.objective(attacked, x_adv, y, prepared).sum()
                (gradient,) = torch.autograd.grad(value, x_adv)
                moved = self.threat.step(x_adv.detach(), gradient, self.relative_step * self.threat.eps)
                x_adv = self.threat.project(moved, x)
                if step in at:
                    found[step] = x_adv
        return found

"""Projected gradient descent and its relatives; FGSM, BIM, PGD-k, C&W-loss, MI-, DI- and TI-FGSM are its YAMLs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fsr_lab.attack.input_diversity import InputDiversity
from fsr_lab.attack.momentum import gathered
from fsr_lab.attack.translation import Translation
from fsr_lab.core.crafting import Policy, crafting
from fsr_lab.core.objective import CrossEntropy, OnLogits
from fsr_lab.core.threat import Threat
from fsr_lab.core.types import Classifier, Forward, Objective
from fsr_lab.core.units import fraction, whole


@dataclass(frozen=True, kw_only=True)
class PGD:
    """Steepest ascent on an objective, projected after each step; returns the last iterate.

    Source: Madry et al., 2018 (arXiv:1706.06083); FGSM is its one full step (Goodfellow et al., 2015,
    arXiv:1412.6572). The order within a step is: diversify the image, take the gradient, smooth it, gather it; move,
    project on the ball, clip to [0, 1].

    Attributes:
        threat: the set searched.
        steps: number of gradient steps.
        relative_step: step size as a fraction of eps.
        random_start: start at a random point, not at the clean image.
        start_std: of a Gaussian start x + start_std * N(0, 1), not clipped, as TRADES and MART have it; None starts
            at a uniform point of the set.
        objective: what is raised, summed over the batch, so that the batch size changes nothing.
        policy: precision of the crafting passes.
        patience: steps that a sample goes on for once it is misclassified; then it stays where it is (friendly
            adversarial training: Zhang et al., 2020, arXiv:2002.11242). None goes on to the end.
        jitter: standard deviation of Gaussian noise added in every step (as there).
        noise: craft through the defences' training noise, not the deterministic deployed model.
        momentum: what stays of earlier steps' gradients (MI); 1 keeps all, 0 follows the present one alone.
        diversity: how the image is shown in each step (DI); None shows it as it is.
        smoothing: of each step's gradient (TI); None takes it as it is.

    Raises:
        ValueError: fewer than one step, or a size that is no number of at least 0.
    """

    threat: Threat
    steps: int
    relative_step: float
    random_start: bool
    objective: Objective = OnLogits(CrossEntropy())
    policy: Policy = Policy()
    start_std: float | None = None
    patience: int | None = None
    jitter: float = 0.0
    noise: bool = False
    momentum: float = 0.0
    diversity: InputDiversity | None = None
    smoothing: Translation | None = None

    def __post_init__(self) -> None:
        whole("steps", self.steps, 1)
        if self.patience is not None:
            whole("patience", self.patience)
        for name in ("relative_step", "start_std", "jitter", "momentum"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, fraction(getattr(self, name)))

    @property
    def exact_on_linear(self) -> bool:
        """Whether it reaches the worst point of a linear model; losses that compare with clean logits have two.

        Resized images and smoothed gradients point elsewhere.
        """
        return not self.objective.loss.needs_clean and self.diversity is None and self.smoothing is None

    @property
    def is_random(self) -> bool:
        """Whether it draws random numbers."""
        return self.random_start or self.jitter > 0 or self.noise or self.diversity is not None

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
        with crafting(model, self.policy, example=x, noise=self.noise) as attacked:
            # clones: inference tensors, as Lightning's validation hands them over, cannot enter autograd
            x, y = x.detach().clone(), y.clone()
            with torch.no_grad():
                prepared = self.objective.prepare(attacked, x, y)
            seen = _Watched(attacked)
            friends = None if self.patience is None else _Friends(y, self.patience)
            x_adv, followed = self._start(x), None
            for step in range(1, max(at) + 1):
                x_adv = x_adv.detach().requires_grad_()
                shown = x_adv if self.diversity is None else self.diversity(x_adv)
                value = self.objective(seen, shown, y, prepared).sum()
                (gradient,) = torch.autograd.grad(value, x_adv)
                if self.smoothing is not None:
                    gradient = self.smoothing(gradient)
                if self.momentum:
                    gradient = followed = gathered(gradient, followed, self.momentum)
                x_adv = x_adv.detach()
                moved = self.threat.step(x_adv, gradient, self.relative_step * self.threat.eps)
                if self.jitter:
                    moved = moved + self.jitter * _normal(moved)
                if friends is not None:
                    moved = torch.where(friends.stay(seen.logits)[:, None, None, None], x_adv, moved)
                x_adv = self.threat.project(moved, x)
                if step in at:
                    found[step] = x_adv
        return found

    def _start(self, x: Tensor) -> Tensor:
        if not self.random_start:
            return x
        if self.start_std is None:
            return self.threat.random_start(x)
        return x + self.start_std * _normal(x)


def _normal(like: Tensor) -> Tensor:
    """Draw from N(0, 1) in an image's shape, in one order whatever its strides."""
    return torch.randn_like(like, memory_format=torch.contiguous_format)


class _Friends:
    """Counts each sample's patience; one that has run out stays for good. All (N,), on the device, never read back."""

    def __init__(self, y: Tensor, patience: int) -> None:
        self.y = y
        self.left = torch.full_like(y, patience)
        self.stayed = torch.zeros_like(y, dtype=torch.bool)

    def stay(self, logits: Tensor) -> Tensor:
        """Return which samples keep their present iterate, on which the logits are."""
        wrong = logits.argmax(1) != self.y
        self.stayed = self.stayed | (wrong & (self.left <= 0))
        self.left = torch.where(wrong & ~self.stayed, self.left - 1, self.left)
        return self.stayed


class _Watched:
    """The attacked model, whose latest logits are kept; everything else about it is the model's own."""

    def __init__(self, model: Classifier) -> None:
        self.model: Any = model
        self.logits = torch.empty(0)

    def __call__(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        self.logits = logits.detach()
        return logits

    def forward_with_aux(self, x: Tensor, targets: Tensor | None = None) -> Forward:
        forward: Forward = self.model.forward_with_aux(x, targets)
        self.logits = forward.logits.detach()
        return forward

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

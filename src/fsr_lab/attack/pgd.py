"""Projected gradient descent and its relatives; FGSM, BIM, PGD-k, C&W-loss, MI-, DI- and TI-FGSM are its YAMLs."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from fsr_lab.attack.best_iterate import BestIterate
from fsr_lab.attack.input_diversity import InputDiversity
from fsr_lab.attack.momentum import gathered
from fsr_lab.attack.patience import Patience
from fsr_lab.attack.translation import Translation
from fsr_lab.attack.watched import reads_aux, watched
from fsr_lab.core.crafting import Policy, crafting
from fsr_lab.core.objective import CrossEntropy, OnLogits
from fsr_lab.core.passes import Passes, forwards_of
from fsr_lab.core.suggest import unknown
from fsr_lab.core.threat import Threat
from fsr_lab.core.types import Attack, Classifier, Objective, Particular, SampleLoss
from fsr_lab.core.units import fraction, whole

Keep = Literal["last", "best"]


@dataclass(frozen=True, kw_only=True)
class PGD:
    """Steepest ascent on an objective, projected after each step; returns the last iterate unless told otherwise.

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
        keep: "last" returns the last iterate, "best" of each sample the one with the smallest margin z_y - max other
            by the crafting passes: the prediction may be right at a higher loss than where it is wrong. It costs one
            more forward than "last"; with diversity, one in every step that shows the images otherwise.

    Raises:
        ValueError: fewer than one step, an unknown `keep`, or a size that is no number of at least 0.
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
    keep: Keep = "last"

    def __post_init__(self) -> None:
        whole("steps", self.steps, 1)
        if self.keep not in get_args(Keep):
            raise ValueError(unknown("iterate to keep", self.keep, get_args(Keep)))
        if self.patience is not None:
            whole("patience", self.patience)
        for name in ("relative_step", "start_std", "jitter", "momentum"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, fraction(getattr(self, name)))

    @property
    def exact_on_linear(self) -> bool:
        """Whether it reaches the worst point of a linear model; losses that compare with clean logits have two.

        Resized images and smoothed gradients point elsewhere, and adaptive objectives have nothing to work on there.
        """
        loss = self.objective.loss
        compares = isinstance(loss, SampleLoss) and loss.needs_clean
        is_particular = isinstance(self.objective, Particular)
        return not (compares or is_particular) and self.diversity is None and self.smoothing is None

    @property
    def is_random(self) -> bool:
        """Whether it draws random numbers."""
        draws = self.random_start or self.jitter > 0 or self.noise or self.diversity is not None
        return draws or self.objective.is_random

    def passes(self, num_classes: int) -> Passes:
        """Return the most passes of a sample; see `Budgeted`."""
        once, each = forwards_of(self.objective)
        is_shown = self.diversity is None and (reads_aux(self.objective) or not hasattr(self.objective, "forwards"))
        looks = 0 if is_shown or (self.keep == "last" and self.patience is None) else self.steps
        return Passes(once + self.steps * each + looks + (self.keep == "best"), self.steps * each)

    def __call__(self, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        """Return x_adv (N, C, H, W), detached, in the threat set around x.

        Args:
            model: maps images to logits.
            x: (N, C, H, W) in [0, 1].
            y: (N,) int64 labels.
        """
        return self.iterates(model, x, y, at=(self.steps,))[self.steps]

    def run_from(self, start: Tensor, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        """Return what a run that begins at `start` ends with; see `StartsAnywhere`."""
        return self._path(model, x, y, {self.steps}, set(), start)[0][self.steps]

    def lacks(self, model: Classifier, x: Tensor) -> str | None:
        """Tell what the objective does not find on a network; see `Particular`."""
        return self.objective.lacks(model, x) if isinstance(self.objective, Particular) else None

    def passes_by(self, other: Attack) -> bool:
        """Tell whether its run has another attack's result on its way: with fewer steps alike, or one of any size.

        Paths from a random start are their own; so are those of which not the last iterate counts.
        """
        if not isinstance(other, PGD) or self.is_random or self.keep != "last" or self.patience is not None:
            return False
        alike = replace(other, steps=self.steps, relative_step=self.relative_step) == self
        return alike and (other.steps == 1 or (other.relative_step == self.relative_step and other.steps <= self.steps))

    def together(self, others: Sequence[Attack], model: Classifier, x: Tensor, y: Tensor) -> list[Tensor]:
        """Return the results of attacks that this one passes by, each as it is alone, for this one's passes."""
        kin = [cast(PGD, other) for other in others]
        firsts = {other.relative_step for other in kin if other.steps == 1}
        iterates, first = self._path(model, x, y, {other.steps for other in kin}, firsts)
        return [first[other.relative_step] if other.steps == 1 else iterates[other.steps] for other in kin]

    def iterates(self, model: Classifier, x: Tensor, y: Tensor, *, at: Sequence[int]) -> Mapping[int, Tensor]:
        """Return what one run has after each of the step counts `at`, detached: PGD-20 on the way to PGD-100."""
        return self._path(model, x, y, set(at), set())[0]

    def _path(
        self,
        model: Classifier,
        x: Tensor,
        y: Tensor,
        at: AbstractSet[int],
        firsts: AbstractSet[float],
        start: Tensor | None = None,
    ) -> tuple[dict[int, Tensor], dict[float, Tensor]]:
        """Return the iterates after each of the step counts, and after a first step of each of these relative sizes."""
        found: dict[int, Tensor] = {}
        first: dict[float, Tensor] = {}
        with crafting(model, self.policy, example=x, noise=self.noise) as attacked:
            # clones: inference tensors, as Lightning's validation hands them over, cannot enter autograd
            x, y = x.detach().clone(), y.clone()
            with torch.no_grad():
                prepared = self.objective.prepare(attacked, x, y)
            seen = watched(attacked, self.objective)
            patience = None if self.patience is None else Patience(y, self.patience)
            best = BestIterate(x, y) if self.keep == "best" else None
            x_adv, followed = self._start(x) if start is None else start.detach().clone(), None
            for step in range(1, max(at) + 1):
                image = x_adv.detach().requires_grad_()
                shown = image if self.diversity is None else self.diversity(image)
                value = self.objective(seen, shown, y, prepared).sum()
                (gradient,) = torch.autograd.grad(value, image)
                seen.forget()
                if self.smoothing is not None:
                    gradient = self.smoothing(gradient)
                if self.momentum:
                    gradient = followed = gathered(gradient, followed, self.momentum)
                x_adv = image.detach()
                if best is not None and step > 1:  # the start is no iterate, and may lie outside the set
                    best.after(x_adv, seen.logits_on(image))
                if step == 1:
                    for size in firsts:
                        moved = self.threat.step(x_adv, gradient, size * self.threat.eps)
                        first[size] = self.threat.project(moved, x)
                moved = self.threat.step(x_adv, gradient, self.relative_step * self.threat.eps)
                if self.jitter:
                    moved = moved + self.jitter * _normal(moved)
                if patience is not None:
                    moved = torch.where(patience.stays(seen.logits_on(image))[:, None, None, None], x_adv, moved)
                x_adv = self.threat.project(moved, x)
                if step in at:
                    found[step] = x_adv if best is None else best.after(x_adv, seen.logits_on(x_adv))
        return found, first

    def _start(self, x: Tensor) -> Tensor:
        if not self.random_start:
            return x
        if self.start_std is None:
            return self.threat.random_start(x)
        return x + self.start_std * _normal(x)


def _normal(like: Tensor) -> Tensor:
    """Draw from N(0, 1) in an image's shape, in one order whatever its strides."""
    return torch.randn_like(like, memory_format=torch.contiguous_format)

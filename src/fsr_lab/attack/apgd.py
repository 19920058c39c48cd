"""Auto-PGD, the gradient attack of AutoAttack: APGD-CE, APGD-DLR and APGD-T are YAMLs of this file."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from fsr_lab.attack.climb import Climb, Look, wide
from fsr_lab.attack.step_schedule import checkpoints
from fsr_lab.attack.watched import Watched, watched
from fsr_lab.core import losses
from fsr_lab.core.crafting import REFERENCE, Policy, crafting, judging
from fsr_lab.core.objective import DLR, CrossEntropy, OnLogits, TargetedDLR
from fsr_lab.core.passes import Passes, forwards_of
from fsr_lab.core.targets import Ranked, Towards
from fsr_lab.core.threat import Threat
from fsr_lab.core.types import Aimed, Classifier, Objective, Particular, SampleLoss
from fsr_lab.core.units import fraction, whole

EXIT_EVERY = 10
"""Iterations between two looks at who may leave early: each waits for the device and changes the batch's size."""


@dataclass(frozen=True, kw_only=True)
class APGD:
    """Projected ascent with momentum, which halves a sample's step where progress stops and returns to its best point.

    Source: AutoAttack (Croce and Hein, 2020, arXiv:2003.01690), Algorithm 1, with the released code's numbers: the
    first step is 2 eps, 0.75 of each move is new, a random start is noise scaled to the size eps. An image that the
    deployed model gets wrong is returned as it is; of a fooled sample, the last misclassified iterate is.

    From the same starts it fools whom the released code fools. Differs: of a sample not fooled the point with the
    highest loss is returned (of several runs, the judged point with the smallest margin), not the clean image. Starts
    are drawn for the whole batch, so that who is left changes no draw. Where crafting is not computed exactly as the
    deployed model, the deployed model says who is fooled.

    Attributes:
        threat: the set searched.
        objective: what is raised, summed over the batch; one with a targeted loss where there are `targets`.
        steps: iterations of a run. A run costs steps + 1 forwards and `steps` gradients.
        restarts: runs per target, each on the samples not fooled yet.
        targets: number of classes aimed at, one after the other, from the likeliest wrong one of the clean prediction
            on, fewer if there are fewer; 0 is untargeted. 9 with the loss TargetedDLR is APGD-T.
        rho: the step is halved where at most this share of a window's iterates raised the loss.
        eot: forwards over which each gradient is averaged, with the defences' training noise drawn (expectation over
            transformations); loss and prediction are the last one's, as in the released code. 1 is without noise.
        random_start: start at a random point, not at the clean image.
        early_exit: let fooled samples leave a run, at every tenth iteration. Samples know nothing of each other, so
            only the iterate returned for them changes. For models without noise: with it, one lucky draw would do.
        policy: precision of the crafting passes.

    Raises:
        ValueError: a count below its least; a targeted loss without targets, or targets without one; an early exit
            together with noise.
    """

    threat: Threat
    objective: Objective = OnLogits(CrossEntropy())
    steps: int = 100
    restarts: int = 1
    targets: int = 0
    rho: float = 0.75
    eot: int = 1
    random_start: bool = True
    early_exit: bool = False
    policy: Policy = REFERENCE

    exact_on_linear: ClassVar[bool] = False
    """Not declared: what the model gets wrong already is left where it is, not taken to the worst point."""

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("restarts", 1), ("targets", 0), ("eot", 1)):
            whole(name, getattr(self, name), least)
        object.__setattr__(self, "rho", fraction(self.rho))
        loss = self.objective.loss
        if isinstance(loss, SampleLoss) and self.targets:
            raise ValueError(f"{loss} aims at no class: set targets=0, or take a loss such as TargetedDLR")
        if not isinstance(loss, SampleLoss) and not self.targets:
            raise ValueError(f"{loss} needs classes to aim at: set targets, 9 as in AutoAttack")
        if self.early_exit and self.eot > 1:
            raise ValueError("early_exit would let a sample go for one lucky draw of the noise: set it false, or eot=1")

    @property
    def is_random(self) -> bool:
        """Whether it draws random numbers."""
        return self.random_start or self.eot > 1 or self._objectives(2)[0].is_random

    def for_classes(self, num_classes: int) -> "APGD":
        """Return the attack, or the same with the margin where its loss needs more classes than there are."""
        objective = self.objective
        if not isinstance(objective, OnLogits | Towards) or not isinstance(objective.loss, DLR | TargetedDLR):
            return self
        return replace(self, objective=replace(objective, loss=cast(Any, objective.loss.for_classes(num_classes))))

    def lacks(self, model: Classifier, x: Tensor) -> str | None:
        """Tell what the objective does not find on a network; see `Particular`."""
        return self.objective.lacks(model, x) if isinstance(self.objective, Particular) else None

    def passes(self, num_classes: int) -> Passes:
        """Return the most passes of a sample; see `Budgeted`."""
        runs = self.restarts * max(1, min(self.targets, num_classes - 1))
        exits = len(range(EXIT_EVERY, self.steps, EXIT_EVERY)) if self.early_exit else 0
        is_exact = self.policy == REFERENCE and self.eot == 1
        looks = (runs > 1) + (0 if is_exact else exits + 1)
        once, each = forwards_of(self.objective)
        # an objective of its own passes may leave the iterate's logits to be asked for
        asks = 0 if not hasattr(self.objective, "forwards") else self.steps + 1
        gradients = self.steps * self.eot * each
        return Passes(1).plus(Passes(once + gradients + each + asks + looks, gradients).times(runs))

    def __call__(self, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        """Return x_adv (N, C, H, W), detached, in the threat set around x.

        Args:
            model: maps images to logits.
            x: (N, C, H, W) in [0, 1].
            y: (N,) int64 labels.

        Raises:
            ValueError: the model has fewer classes than the loss needs.
        """
        return self._attack(None, model, x, y)

    def run_from(self, start: Tensor, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        """Return what runs that begin at `start` find; see `StartsAnywhere`."""
        return self._attack(start, model, x, y)

    def _attack(self, given: Tensor | None, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        # clones: inference tensors, as Lightning's validation hands them over, cannot enter autograd
        with torch.inference_mode(False):
            x, y = x.detach().clone(), y.clone()
            logits = _deployed_logits(model, x)
            clean, x_adv, is_right, smallest = logits, x, logits.argmax(1) == y, losses.margin(logits, y)
            runs = [each for each in self._objectives(logits.shape[1]) for _ in range(self.restarts)]
            for objective in runs:
                start = self._start(x) if given is None else given.detach().clone()
                left = is_right.nonzero().squeeze(1)
                if not len(left):
                    break
                found = self._run(model, objective, x[left], y[left], start[left], clean[left])
                if len(runs) == 1:
                    return x.index_copy(0, left, found)
                logits = _deployed_logits(model, found)
                stays, margin = logits.argmax(1) == y[left], losses.margin(logits, y[left])
                better = ~stays | (margin < smallest[left])
                x_adv = x_adv.index_copy(0, left, torch.where(wide(better, x), found, x_adv[left]))
                smallest = smallest.index_copy(0, left, torch.where(better, margin, smallest[left]))
                is_right = is_right.index_copy(0, left, stays)
            return x_adv

    def _objectives(self, num_classes: int) -> list[Objective]:
        """Return what is raised in one run after the other: the objective, or it aimed at each of the targets."""
        if not self.targets:
            return [self.objective]
        ranks = range(1, min(self.targets, num_classes - 1) + 1)
        return [cast(Aimed, self.objective).aimed(Ranked(rank=rank)) for rank in ranks]

    def _start(self, x: Tensor) -> Tensor:
        if not self.random_start:
            return x
        # contiguous: drawn in one order, whatever the strides of the images
        if self.threat.norm == "linf":
            noise = 2 * torch.rand_like(x, memory_format=torch.contiguous_format) - 1
            length = noise.flatten(1).abs().amax(1)
        else:
            noise = torch.randn_like(x, memory_format=torch.contiguous_format)
            length = noise.flatten(1).norm(dim=1)
        return (x + self.threat.eps * (noise / wide(length + 1e-12, x))).clamp(0, 1)

    def _run(
        self, model: Classifier, objective: Objective, x: Tensor, y: Tensor, start: Tensor, clean: Tensor
    ) -> Tensor:
        """Return each sample's point of one run: the last misclassified one, or the one with the highest loss."""
        found, rows = start, torch.arange(len(x), device=x.device)
        reviews = checkpoints(self.steps)
        exits = range(EXIT_EVERY, self.steps, EXIT_EVERY) if self.early_exit else ()
        with self._crafting(model, x) as attacked:
            with torch.no_grad():
                prepared = objective.prepare(Watched(attacked, known=(x, clean)), x, y)
            look = self._look(watched(attacked, objective), objective, start, y, prepared)
            climb = Climb.start(x, y, prepared, start, look, size=2 * self.threat.eps)
        for before, last in pairwise((0, *exits, self.steps)):
            with self._crafting(model, climb.x) as attacked:
                seen = watched(attacked, objective)
                for step in range(before + 1, last + 1):
                    climb.move(self.threat, share=1 if step == 1 else 0.75)
                    is_last = step == self.steps
                    look = self._look(seen, objective, climb.x_adv, climb.y, climb.prepared, is_last=is_last)
                    climb.see(look)
                    if step in reviews:
                        climb.review(reviews[step], self.rho)
            fooled = self._confirmed(model, climb)
            found = found.index_copy(0, rows, torch.where(wide(fooled, x), climb.x_fooled, climb.x_best))
            stays = (~fooled).nonzero().squeeze(1)
            if not len(stays):
                break
            rows = rows[stays]
            climb.keep(stays)
        return found

    def _crafting(self, model: Classifier, x: Tensor) -> AbstractContextManager[Classifier]:
        return crafting(model, self.policy, example=x, noise=self.eot > 1)

    def _look(
        self,
        seen: Watched,
        objective: Objective,
        x_adv: Tensor,
        y: Tensor,
        prepared: Mapping[str, Tensor],
        *,
        is_last: bool = False,
    ) -> Look:
        """Evaluate one iterate; from the last one nobody moves on, and its gradient is not computed."""
        image = x_adv.detach().requires_grad_(not is_last)
        gradient = torch.zeros_like(x_adv)
        for _ in range(1 if is_last else self.eot):
            seen.forget()
            loss = objective(seen, image, y, prepared)
            if not is_last:
                gradient = gradient + torch.autograd.grad(loss.sum(), image)[0]
        seen.forget()
        return Look(loss.detach(), seen.logits_on(image).argmax(1) != y, gradient / self.eot)

    def _confirmed(self, model: Classifier, climb: Climb) -> Tensor:
        """Return which samples' last misclassified iterates the deployed model misclassifies, (N,) bool."""
        if self.policy == REFERENCE and self.eot == 1:
            return climb.fooled  # crafted with the deployed model's own forwards
        suspects = climb.fooled.nonzero().squeeze(1)
        if not len(suspects):
            return climb.fooled
        wrong = _deployed_logits(model, climb.x_fooled[suspects]).argmax(1) != climb.y[suspects]
        return climb.fooled.index_copy(0, suspects, wrong)


def _deployed_logits(model: Classifier, x: Tensor) -> Tensor:
    with judging(model) as deployed:
        return deployed(x)

"""Steering FSR's mask: towards one that the attacker chooses, beside the loss on the logits."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from fsr_lab.attack.another_class import next_of_another_class
from fsr_lab.attack.on_aux import filed, lacks_aux
from fsr_lab.core.objective import CrossEntropy
from fsr_lab.core.precision import full_precision
from fsr_lab.core.suggest import unknown
from fsr_lab.core.types import Classifier, SampleLoss

Goal = Literal["ones", "zeros", "swap", "other"]
Form = Literal["bce", "logistic"]


@dataclass(frozen=True, kw_only=True)
class Steer:
    """Raises minus the distance of the mask m from a goal M, the mean over units, then over the points that file it.

    Differs from a sum over units, so that a weight means the same at every size of the feature. Of a mask that does not
    depend on the image the gradient is exactly zero: beside another objective it changes nothing.

    Attributes:
        goal: M: "ones" turns the recalibration off, "zeros" has everything recalibrated, "swap" is 1 - m of the clean
            image, "other" the mask of an image of another class, the next one in the batch that there is ("swap", where
            there is none).
        form: "bce" raises M log m + (1 - M) log(1 - m), whose gradient is zero wherever m has rounded to 0 or 1;
            "logistic" -softplus(-(2 M - 1) r) on the score r, which does not saturate.

    Raises:
        ValueError: an unknown goal or form; when called, no defence that files a mask or, for "logistic", a score.
    """

    goal: Goal
    form: Form = "logistic"

    loss: ClassVar[SampleLoss] = CrossEntropy()
    """What it stands beside: of its own it has no loss on logits."""
    is_random: ClassVar[bool] = False
    reads_aux: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for kind, value, known in (("goal", self.goal, get_args(Goal)), ("form", self.form, get_args(Form))):
            if value not in known:
                raise ValueError(unknown(kind, value, known))

    def lacks(self, model: Classifier, x: Tensor) -> str | None:
        """Tell that no defence files a mask, or a score, if none does."""
        return lacks_aux(model, x, self._key)

    def prepare(self, model: Classifier, x: Tensor, y: Tensor) -> Mapping[str, Tensor]:
        if self.goal in ("ones", "zeros"):
            return {}
        masks = [full_precision(aux["mask"]) for aux in self._points(model, x)]
        swapped = [1 - mask for mask in masks]
        if self.goal == "swap":
            return {str(place): mask for place, mask in enumerate(swapped)}
        other = next_of_another_class(y)
        is_alone = (y[other] == y)[:, None, None, None]
        goals = [torch.where(is_alone, swap, mask[other]) for mask, swap in zip(masks, swapped, strict=True)]
        return {str(place): goal for place, goal in enumerate(goals)}

    def __call__(self, model: Classifier, x_adv: Tensor, y: Tensor, prepared: Mapping[str, Tensor]) -> Tensor:
        nearness = _cross_entropy if self.form == "bce" else _logistic
        values = []
        for place, aux in enumerate(self._points(model, x_adv)):
            found = full_precision(aux[self._key])
            goal = prepared.get(str(place), torch.full_like(found, float(self.goal == "ones")))
            values.append(nearness(found, goal).flatten(1).mean(1))
        return torch.stack(values).mean(0)

    @property
    def _key(self) -> str:
        return "mask" if self.form == "bce" else "score"

    def _points(self, model: Classifier, x: Tensor) -> list[Mapping[str, Tensor]]:
        forward, _ = filed(model, x, self._key)
        return [aux for aux in forward.aux.values() if self._key in aux]


def _cross_entropy(mask: Tensor, goal: Tensor) -> Tensor:
    # by hand: torch's own refuses to run under autocast, and its gradient where the mask has rounded to 0 or 1 is 1e12
    tiny = torch.finfo(mask.dtype).tiny
    return goal * mask.clamp_min(tiny).log() + (1 - goal) * (1 - mask).clamp_min(tiny).log()


def _logistic(score: Tensor, goal: Tensor) -> Tensor:
    return functional.logsigmoid((2 * goal - 1) * score)

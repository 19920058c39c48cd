"""Feature guides: an image's features are led to those of another class, or away from its own."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from fsr_lab.attack.another_class import drawn_of_another_class
from fsr_lab.attack.on_aux import filed, lacks_aux
from fsr_lab.core.objective import CrossEntropy
from fsr_lab.core.precision import full_precision
from fsr_lab.core.suggest import unknown
from fsr_lab.core.types import Classifier, SampleLoss

Goal = Literal["other", "away"]


@dataclass(frozen=True, kw_only=True)
class Guide:
    """Raises minus the squared distance of a filed feature to a guide's, or plus that to the clean image's own.

    Source of the former: Sabour et al., 2016 (arXiv:1511.05122). Distances are means over units of the squared
    difference, then over the points that file the feature, so that a weight means the same at every size of it.

    Attributes:
        key: of the feature (N, C, H, W), such as `f_tilde`, what FSR passes on.
        goal: "other" leads to the feature of an image of another class, drawn for each sample from the batch, so that
            restarts try other guides; a sample that has none there is led "away". "away" leads off the clean image's
            own feature: on the clean image its gradient is exactly zero, and it takes a random start, or another
            objective beside it, to leave that.

    Raises:
        ValueError: an unknown goal; when called, no defence that files the key.
    """

    key: str = "f_tilde"
    goal: Goal = "other"

    loss: ClassVar[SampleLoss] = CrossEntropy()
    """What it stands beside: of its own it has no loss on logits."""
    reads_aux: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.goal not in get_args(Goal):
            raise ValueError(unknown("goal", self.goal, get_args(Goal)))

    @property
    def is_random(self) -> bool:
        """Whether guides are drawn."""
        return self.goal == "other"

    def lacks(self, model: Classifier, x: Tensor) -> str | None:
        """Tell that no defence files the key, if none does."""
        return lacks_aux(model, x, self.key)

    def prepare(self, model: Classifier, x: Tensor, y: Tensor) -> Mapping[str, Tensor]:
        features = filed(model, x, self.key)[1]
        guide = drawn_of_another_class(y) if self.goal == "other" else torch.arange(len(y), device=y.device)
        sign = torch.where(y[guide] == y, 1, -1)
        return {"sign": sign} | {str(place): full_precision(each)[guide] for place, each in enumerate(features)}

    def __call__(self, model: Classifier, x_adv: Tensor, y: Tensor, prepared: Mapping[str, Tensor]) -> Tensor:
        features = filed(model, x_adv, self.key)[1]
        distances = [
            (full_precision(each) - prepared[str(place)]).square().flatten(1).mean(1)
            for place, each in enumerate(features)
        ]
        return prepared["sign"] * torch.stack(distances).mean(0)

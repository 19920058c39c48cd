"""Attacks towards one wrong class: which class that is, and the objective that leads there."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fsr_lab.core.losses import most_likely_wrong
from fsr_lab.core.types import Classifier, Target, TargetedLoss
from fsr_lab.core.units import whole


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """The wrong class of a rank by the clean image's logits: 1 is the most likely one, -1 the least likely.

    The least likely class is the target of Kurakin et al., 2017 (arXiv:1607.02533), Section 2.3.

    Raises:
        ValueError: a rank of 0; when called, one beyond the wrong classes that there are.
    """

    rank: int
    is_random: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.rank == 0:
            raise ValueError("expected a rank from 1, the most likely wrong class, or from -1, the least likely, got 0")

    def __call__(self, clean_logits: Tensor, y: Tensor) -> Tensor:
        ranked = clean_logits.argsort(dim=1, descending=True, stable=True)
        wrong = ranked[ranked != y[:, None]].reshape(len(y), -1)
        if abs(self.rank) > wrong.shape[1]:
            raise ValueError(f"expected a rank among the network's {wrong.shape[1]} wrong classes, got {self.rank}")
        return wrong[:, self.rank - 1 if self.rank > 0 else self.rank]


@dataclass(frozen=True)
class AnyWrong:
    """A wrong class drawn uniformly for each sample."""

    is_random: ClassVar[bool] = True

    def __call__(self, clean_logits: Tensor, y: Tensor) -> Tensor:
        drawn = torch.randint(clean_logits.shape[1] - 1, y.shape, device=y.device)
        return drawn + (drawn >= y)


@dataclass(frozen=True, kw_only=True)
class Given:
    """One class for all; of the samples that are of this class, the most likely wrong one.

    Raises:
        ValueError: a label below 0; when called, one that the network does not know.
    """

    label: int
    is_random: ClassVar[bool] = False

    def __post_init__(self) -> None:
        whole("label", self.label)

    def __call__(self, clean_logits: Tensor, y: Tensor) -> Tensor:
        if self.label >= clean_logits.shape[1]:
            raise ValueError(f"expected a label below {clean_logits.shape[1]}, the network's classes, got {self.label}")
        return torch.where(y == self.label, most_likely_wrong(clean_logits, y), self.label)


@dataclass(frozen=True, kw_only=True)
class Towards:
    """A targeted loss on the model's logits; the target is chosen by the attacked function's own clean logits.

    Whether a sample is fooled does not depend on it: a record counts any wrong class.
    """

    loss: TargetedLoss
    target: Target

    @property
    def is_random(self) -> bool:
        """Whether the target is drawn."""
        return self.target.is_random

    def prepare(self, model: Classifier, x: Tensor, y: Tensor) -> Mapping[str, Tensor]:
        return {"target": self.target(model(x), y)}

    def __call__(self, model: Classifier, x_adv: Tensor, y: Tensor, prepared: Mapping[str, Tensor]) -> Tensor:
        return self.loss(model(x_adv), y, prepared["target"])

    def aimed(self, target: Target) -> "Towards":
        """Return the same, leading to another target."""
        return replace(self, target=target)

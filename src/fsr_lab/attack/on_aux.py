"""Losses on the auxiliary logits that defences file: FSR's three heads, the probes of CAS and CIFS."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from fsr_lab.core.losses import most_likely_wrong
from fsr_lab.core.suggest import unknown
from fsr_lab.core.types import Classifier, Forward, SampleLoss, Target, TargetedLoss

Label = Literal["true", "wrong"]


@dataclass(frozen=True, kw_only=True)
class OnAux:
    """A sample loss on auxiliary logits, the mean over the points that file them.

    Attributes:
        key: of the auxiliary logits (N, K): `p_plus`, `p_minus`, `p_tilde` of FSR, `p_probe` of CAS and CIFS.
        loss: what is raised on them.
        of: the class that the loss is of: the "true" one, or the most likely "wrong" one by the network's own logits,
            y' of FSR.

    Raises:
        ValueError: an unknown kind of class; when called, no defence that files the key.
    """

    key: str
    loss: SampleLoss
    of: Label = "true"
    is_random: ClassVar[bool] = False
    reads_aux: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.of not in get_args(Label):
            raise ValueError(unknown("class", self.of, get_args(Label)))

    def lacks(self, model: Classifier, x: Tensor) -> str | None:
        """Tell that no defence files the key, if none does."""
        return lacks_aux(model, x, self.key)

    def prepare(self, model: Classifier, x: Tensor, y: Tensor) -> Mapping[str, Tensor]:
        if not self.loss.needs_clean:
            return {}
        return {str(place): each for place, each in enumerate(filed(model, x, self.key)[1])}

    def __call__(self, model: Classifier, x_adv: Tensor, y: Tensor, prepared: Mapping[str, Tensor]) -> Tensor:
        forward, values = filed(model, x_adv, self.key)
        label = y if self.of == "true" else most_likely_wrong(forward.logits, y)
        each = [self.loss(value, label, prepared.get(str(place))) for place, value in enumerate(values)]
        return torch.stack(each).mean(0)


@dataclass(frozen=True, kw_only=True)
class TowardsAux:
    """A targeted loss on auxiliary logits, the mean over the points that file them.

    Attributes:
        key: of the auxiliary logits (N, K).
        loss: what is raised on them.
        target: the wrong class, by the network's own logits on the clean images.

    Raises:
        ValueError: when called, no defence that files the key.
    """

    key: str
    loss: TargetedLoss
    target: Target
    reads_aux: ClassVar[bool] = True

    @property
    def is_random(self) -> bool:
        """Whether the target is drawn."""
        return self.target.is_random

    def aimed(self, target: Target) -> "TowardsAux":
        """Return the same, leading to another target."""
        return replace(self, target=target)

    def lacks(self, model: Classifier, x: Tensor) -> str | None:
        """Tell that no defence files the key, if none does."""
        return lacks_aux(model, x, self.key)

    def prepare(self, model: Classifier, x: Tensor, y: Tensor) -> Mapping[str, Tensor]:
        return {"target": self.target(model(x), y)}

    def __call__(self, model: Classifier, x_adv: Tensor, y: Tensor, prepared: Mapping[str, Tensor]) -> Tensor:
        _, values = filed(model, x_adv, self.key)
        return torch.stack([self.loss(value, y, prepared["target"]) for value in values]).mean(0)


def filed(model: Classifier, x: Tensor, key: str) -> tuple[Forward, list[Tensor]]:
    """Return a forward pass, and what its defences file under a key, one tensor a point.

    Raises:
        ValueError: none of them files it.
    """
    forward: Forward = _with_aux(model)(x)
    values = [aux[key] for aux in forward.aux.values() if key in aux]
    if not values:
        raise ValueError(f"no defence of the network files {key!r}; it files {sorted(_keys(forward))}")
    return forward, values


def lacks_aux(model: Classifier, x: Tensor, key: str) -> str | None:
    """Tell that no defence of a network files a key, if none does, by one image of (N, C, H, W)."""
    if not _files_aux(model):
        return f"the network files no auxiliary tensor, and so no {key!r}"
    with torch.no_grad():
        keys = _keys(_with_aux(model)(x[:1]))
    return None if key in keys else f"no defence of the network files {key!r}"


def _with_aux(model: Any) -> Any:
    if not _files_aux(model):
        raise ValueError("the network files no auxiliary tensors: this objective needs feature defences (attach)")
    return model.forward_with_aux


def _files_aux(model: Classifier) -> bool:
    # asked of the network itself: a wrapper has forward_with_aux whatever it wraps
    return hasattr(model, "defenses")


def _keys(forward: Forward) -> set[str]:
    return {key for aux in forward.aux.values() for key in aux}

"""The view of a network through noise on its images."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from fsr_lab.core.route import Route
from fsr_lab.core.types import Classifier, Forward
from fsr_lab.core.units import fraction


@dataclass(frozen=True, kw_only=True)
class NoisyInput:
    """Shows a network x + std * N(0, 1), drawn anew in every pass: averaged, the gradient of a smoothed network.

    For networks whose own gradient tells of the point alone, such as kWTA's: an attack that averages over passes
    (`eot`) climbs E f(x + noise). The noisy images are not clipped.

    Source: expectation over transformations, Athalye et al., 2018 (arXiv:1802.00420), Section 4.2.

    Attributes:
        std: of the noise, in pixels' units.

    Raises:
        ValueError: a size that is no number of at least 0.
    """

    std: float
    is_random: ClassVar[bool] = True
    keeps_values: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "std", fraction(self.std))

    def __call__(self, model: Classifier) -> Classifier:
        """Return the view."""
        return _Noisy(model, self.std)

    def lacks(self, model: Classifier, x: Tensor) -> str | None:
        """Tell nothing: every network can be shown noise."""
        return None


class _Noisy:
    """A network that sees noise; everything else about it is its own."""

    def __init__(self, model: Classifier, std: float) -> None:
        self.model: Any = model
        self.std = std

    def __call__(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.model(self._shown(x)))

    def forward_with_aux(self, x: Tensor, targets: Tensor | None = None) -> Forward:
        return cast(Forward, self.model.forward_with_aux(self._shown(x), targets))

    def routed(self, route: Mapping[str, Route]) -> "_Noisy":
        return _Noisy(self.model.routed(route), self.std)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def _shown(self, x: Tensor) -> Tensor:
        # contiguous: drawn in one order, whatever the strides of the images
        return x + self.std * torch.randn_like(x, memory_format=torch.contiguous_format)

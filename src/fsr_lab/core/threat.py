"""The threat set: which perturbed images count as the same image.

Tensors make tensors here: without importing torch, records and tables load without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from fsr_lab.core.suggest import unknown
from fsr_lab.core.units import as_fraction, fraction

if TYPE_CHECKING:
    from torch import Tensor

Norm = Literal["linf", "l2"]


@dataclass(frozen=True, kw_only=True)
class Threat:
    """All images of [0, 1] within `eps` of the clean one, in the norm `norm`, per sample.

    Attributes:
        norm: "linf" or "l2", over all of an image's values.
        eps: radius on the [0, 1] pixel scale; "8/255" or a number.

    Raises:
        ValueError: the norm is unknown, or eps is negative or no number.
    """

    norm: Norm
    eps: float

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm):
            raise ValueError(unknown("norm", self.norm, get_args(Norm)))
        object.__setattr__(self, "eps", fraction(self.eps))

    def __str__(self) -> str:
        return f"{self.norm} {as_fraction(self.eps)}"

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Return the point of the threat set nearest to `x_adv` (for L2: of the ball, then of [0, 1]).

        Args:
            x_adv: (N, C, H, W) any values.
            x: (N, C, H, W) clean images in [0, 1].
        """
        if self.norm == "linf":
            return x_adv.clamp(x - self.eps, x + self.eps).clamp(0, 1)
        delta = x_adv - x
        return (x + delta * (self.eps / _l2(delta).clamp_min(1e-12)).clamp_max(1)).clamp(0, 1)

    def random_start(self, x: Tensor) -> Tensor:
        """Return a point drawn uniformly from the ball around each image, clipped to [0, 1]."""
        if self.norm == "linf":
            return (x + x.new_empty(x.shape).uniform_(-self.eps, self.eps)).clamp(0, 1)
        direction = x.new_empty(x.shape).normal_()
        radius = x.new_empty(len(x), *[1] * (x.ndim - 1)).uniform_()
        radius = self.eps * radius ** (1 / x[0].numel())
        return (x + radius * direction / _l2(direction)).clamp(0, 1)

    def step(self, x: Tensor, gradient: Tensor, size: float | Tensor) -> Tensor:
        """Move `x` by `size` in the norm's steepest direction: the sign for linf, the unit vector for l2.

        A tensor of sizes broadcasts to `x`.
        """
        if self.norm == "linf":
            return x + size * gradient.sign()
        return x + size * gradient / _l2(gradient).clamp_min(1e-12)

    def measure(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Return each perturbation's size in the norm, (N,), computed in float64."""
        delta = (x_adv.double() - x.double()).flatten(1)
        size: Tensor = delta.abs().amax(1) if self.norm == "linf" else delta.norm(dim=1)
        return size


def _l2(delta: Tensor) -> Tensor:
    """L2 norm per sample, shaped (N, 1, 1, 1) to broadcast."""
    length: Tensor = delta.flatten(1).norm(dim=1)
    return length.reshape(-1, *[1] * (delta.ndim - 1))

"""DI: every step looks at the image resized and shifted, so that it does not fit one network's pixels."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from fsr_lab.core.suggest import unknown
from fsr_lab.core.units import fraction

Interpolation = Literal["nearest", "bilinear"]


@dataclass(frozen=True, kw_only=True)
class InputDiversity:
    """Resize a batch to a random side and pad it with black to a fixed one, at a random place; or leave it.

    Source: DI-FGSM (Xie et al., 2019, arXiv:1803.06978), Eq. 3. As in its code, one draw serves the whole batch, the
    side is below the larger of the two bounds and all of the padding never lies above or left. Differs: shrinks
    within the image's own size, which any network takes, where the code grows 299 pixels to 330; a rate of 330/299
    gives that. An image that is not square keeps its proportions.

    Attributes:
        rate: the other bound of the side, as a fraction of the image's: 0.9 of 32 pixels draws from 28 to 31 and pads
            to 32; above 1 the image grows, and pads to the bound.
        probability: of a transformation; otherwise the batch passes as it is.
        interpolation: "nearest" (the paper's code) or "bilinear" (torchattacks).

    Raises:
        ValueError: a rate of 0, a probability above 1, an unknown interpolation.
    """

    rate: float
    probability: float
    interpolation: Interpolation

    def __post_init__(self) -> None:
        for name in ("rate", "probability"):
            object.__setattr__(self, name, fraction(getattr(self, name)))
        if self.rate == 0:
            raise ValueError("expected a rate above 0, such as 0.9 of the image's side, got 0")
        if self.probability > 1:
            raise ValueError(f"expected a probability of at most 1, got {self.probability}")
        if self.interpolation not in get_args(Interpolation):
            raise ValueError(unknown("interpolation", self.interpolation, get_args(Interpolation)))

    def __call__(self, x: Tensor) -> Tensor:
        """Return (N, C, H, W), transformed or not; of another size only if the rate is above 1.

        Args:
            x: (N, C, H, W) in [0, 1].
        """
        height = x.shape[-2]
        least, full = sorted((height, max(1, int(self.rate * height))))
        side = _draw(least, full)
        rows, columns = full - side, _across(full, x) - _across(side, x)
        top, left = _draw(0, rows), _draw(0, columns)
        # all draws come before the choice, so that what follows draws the same numbers either way
        if torch.rand(1).item() >= self.probability:
            return x
        resized = functional.interpolate(x, size=(side, _across(side, x)), mode=self.interpolation)
        return functional.pad(resized, (left, columns - left, top, rows - top))


def _draw(low: int, high: int) -> int:
    """Draw from low to high - 1, or low where that is nothing; on the CPU, where no device waits for it."""
    return int(torch.randint(low, max(high, low + 1), (1,)))


def _across(side: int, x: Tensor) -> int:
    """Return the width that belongs to a height."""
    return max(1, round(side * x.shape[-1] / x.shape[-2]))

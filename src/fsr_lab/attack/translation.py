"""TI: the gradient smoothed, which stands for the gradients of all shifted images."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from fsr_lab.core.suggest import unknown
from fsr_lab.core.units import whole

Kernel = Literal["gaussian", "linear", "uniform"]


@dataclass(frozen=True, kw_only=True)
class Translation:
    """Convolve each channel of a gradient with a kernel that sums to one; beyond the border lies nothing.

    Source: TI-FGSM (Dong et al., 2019, arXiv:1904.02884), Eq. 7 and Section 3.2.2. Each of the paper's kernels is
    the outer product of a row with itself, so that two passes of `size` do for one of `size` squared.

    Attributes:
        size: pixels across, odd.
        kernel: "gaussian" is the normal density at `size` even points from -nsig to nsig, "linear" falls from the
            middle to one step beyond the edge, "uniform" is flat.
        nsig: standard deviations from the middle to the edge of the Gaussian.

    Raises:
        ValueError: a size that is even or below 1, an unknown kernel, an nsig that is not above 0.
    """

    size: int
    kernel: Kernel
    nsig: float = 3.0

    def __post_init__(self) -> None:
        if whole("size", self.size, 1) % 2 == 0:
            raise ValueError(f"expected an odd size, to have a middle, got {self.size}")
        if self.kernel not in get_args(Kernel):
            raise ValueError(unknown("kernel", self.kernel, get_args(Kernel)))
        if not self.nsig > 0:
            raise ValueError(f"expected nsig above 0, got {self.nsig}")

    def __call__(self, gradient: Tensor) -> Tensor:
        """Return the smoothed gradient, (N, C, H, W)."""
        row, middle = self._row(gradient), self.size // 2
        planes = gradient.flatten(0, 1)[:, None]
        with torch.autocast(gradient.device.type, enabled=False):  # on the way to a sign, halves lose too much
            planes = functional.conv2d(planes, row[None, None, :, None], padding=(middle, 0))
            planes = functional.conv2d(planes, row[None, None, None], padding=(0, middle))
        return planes.reshape(gradient.shape)

    def _row(self, like: Tensor) -> Tensor:
        """Return the kernel's row, (size,), on the gradient's device and in its precision."""
        place = torch.linspace(-1, 1, self.size, dtype=like.dtype, device=like.device)
        if self.kernel == "gaussian":
            row = torch.exp(-((self.nsig * place) ** 2) / 2)
        elif self.kernel == "linear":
            row = 1 - place.abs() * (self.size - 1) / (self.size + 1)
        else:
            row = torch.ones_like(place)
        return row / row.sum()

"""Where Square starts and what it proposes, in each norm; draws are in the order of the released AutoAttack."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fsr_lab.core.threat import Norm

Start = Callable[[Tensor, float], Tensor]
Propose = Callable[[Tensor, Tensor, float, float], Tensor]


def stripes(x: Tensor, eps: float) -> Tensor:
    """Return images (N, C, H, W) with vertical stripes of one sign for each channel and column."""
    return x + eps * _signs((len(x), x.shape[1], 1, x.shape[3]), x)


def one_square(x: Tensor, best: Tensor, side: float, eps: float) -> Tensor:
    """Return the best images with one square pushed by 2 eps, in each channel to one side.

    Args:
        x: (N, C, H, W) clean images.
        best: (N, C, H, W) where the search stands.
        side: of the square in pixels, before rounding.
        eps: radius.
    """
    height, width = x.shape[-2:]
    size = min(max(round(side), 1), height, width)
    top, left = _below(height - size), _below(width - size)
    image, window = best.clone(), (..., slice(top, top + size), slice(left, left + size))
    pushed = best[window] + 2 * eps * _signs((x.shape[1], 1, 1), x)
    image[window] = torch.minimum(torch.maximum(pushed, x[window] - eps), x[window] + eps)
    return image


def hills_everywhere(x: Tensor, eps: float) -> Tensor:
    """Return images whose perturbation, of l2 size eps, is a five-by-five grid of hills of random signs."""
    height, width = x.shape[-2:]
    size = max(height // 5, 1)
    margin = max(height - 5 * size, 0) // 2
    delta = torch.zeros_like(x)
    for row in range(height // size):
        for column in range(width // size):
            top, left = margin + row * size, margin + column * size
            window = delta[..., top : top + size, left : left + size]
            hill = _hill(size, x) * _signs((len(x), x.shape[1], 1, 1), x)
            window += hill[..., : window.shape[-2], : window.shape[-1]]
    return x + eps * delta / (_length(delta, (1, 2, 3)) + 1e-12)


def moved_hill(x: Tensor, best: Tensor, side: float, eps: float) -> Tensor:
    """Return the best images with the perturbation of a second window put into a hill in a first one.

    Args:
        x: (N, C, H, W) clean images.
        best: (N, C, H, W) where the search stands.
        side: of the windows in pixels, before rounding to an odd number of at least 3.
        eps: radius.
    """
    height, width = x.shape[-2:]
    size = min(max(round(side), 3) // 2 * 2 + 1, height, width)
    windows = []
    for _ in range(2):
        top, left = _below(height - size), _below(width - size)
        windows.append((..., slice(top, top + size), slice(left, left + size)))
    first, second = windows
    delta = best - x
    used = torch.zeros(height, width, dtype=torch.bool, device=x.device)
    used[first] = used[second] = True
    spare = (eps**2 - _length(delta, (1, 2, 3)) ** 2).clamp_min(0) / x.shape[1]
    budget = (spare + _length(delta * used, (2, 3)) ** 2).sqrt()
    hill = _hill(size, x) * _signs((len(x), x.shape[1], 1, 1), x)
    hill = hill + delta[first] / (_length(delta[first], (2, 3)) + 1e-12)
    hill = hill / (_length(hill, (2, 3)) + 1e-12) * budget
    delta[second] = 0
    delta[first] = hill
    return x + eps * delta / (_length(delta, (1, 2, 3)) + 1e-12)


MOVES: Mapping[Norm, tuple[Start, Propose]] = {"linf": (stripes, one_square), "l2": (hills_everywhere, moved_hill)}


def _hill(size: int, like: Tensor) -> Tensor:
    """Return (size, size) of length 1: a hill beside a valley, one above or one beside the other."""
    hill = like.new_zeros(size, size)
    hill[: size // 2] = _half_hill(size // 2, size, like)
    hill[size // 2 :] = -_half_hill(size - size // 2, size, like)
    hill /= hill.norm()
    return hill.T if float(torch.rand(1)) > 0.5 else hill


def _half_hill(height: int, width: int, like: Tensor) -> Tensor:
    """Return (height, width) of length 1: nested rectangles round the middle, the i-th adding 1 / i^2."""
    hill = like.new_zeros(height, width)
    top, left = height // 2, width // 2
    for ring in range(max(top, left) + 1):
        reach = 2 * ring + 1
        hill[max(top - ring, 0) : top - ring + reach, max(left - ring, 0) : left - ring + reach] += 1 / (ring + 1) ** 2
    hill /= hill.norm()
    return hill


def _length(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    return (values**2).sum(dim=dims, keepdim=True).sqrt()


def _signs(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Draw -1 and 1; on the host, so that a seed means the same on every device."""
    return torch.sign(2 * torch.rand(shape) - 1).to(like)


def _below(count: int) -> int:
    """Draw a whole number from 0 to count - 1, and 0 where there is none: as released, the last place is not drawn."""
    return int(count * torch.rand(1))

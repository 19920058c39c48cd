"""Layouts: how a network passes on what a defence sees as a feature map (N, C, H, W).

"nchw" is the convolution nets' own, "nhwc" has the channels last (Swin), "nlc" is a row of tokens (vision
transformers): a square grid read row by row, after tokens of no place, such as the class token.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fsr_lab.core.suggest import unknown

LAYOUTS = ("nchw", "nhwc", "nlc")


class Layout(NamedTuple):
    """The order of an activation's axes.

    Attributes:
        order: one of `LAYOUTS`.
        prefix: tokens before the grid; None finds out: none if all make a square, else one.
    """

    order: str = "nchw"
    prefix: int | None = None

    def to_map(self, activation: Tensor) -> Tensor:
        """Return an activation as a feature map (N, C, H, W).

        Raises:
            ValueError: the tokens make no square grid.
        """
        if self.order == "nchw":
            return activation
        if self.order == "nhwc":
            return activation.permute(0, 3, 1, 2)
        start = self._start(activation.shape[1])
        side = _root(activation.shape[1] - start)
        # not by the batch's length, which a program of torch.export would take for a constant
        features: Tensor = activation[:, start:].transpose(1, 2).unflatten(2, (side, side))
        return features

    def restore(self, features: Tensor, activation: Tensor) -> Tensor:
        """Return a feature map in the activation's layout, after the activation's own prefix tokens, untouched."""
        if self.order == "nchw":
            return features
        if self.order == "nhwc":
            return features.permute(0, 2, 3, 1).contiguous()  # networks go on with view()
        tokens = features.flatten(2).transpose(1, 2)
        start = self._start(activation.shape[1])
        return torch.cat((activation[:, :start], tokens), 1)

    def _start(self, length: int) -> int:
        # what the network says first; without the prefix where it joins only later (CaiT, the patches of a ViT)
        tried = (0, 1) if self.prefix is None else (self.prefix, 0)
        for start in tried:
            grid = length - start
            if grid > 0 and _root(grid) ** 2 == grid:
                return start
        raise ValueError(f"{length} tokens, which make no square grid, with {tried} before it; tap another layer")


def layout_of(backbone: nn.Module, order: str) -> Layout:
    """Return the layout of that order, with as many prefix tokens as the network says it has.

    Raises:
        ValueError: there is no such order.
    """
    if order not in LAYOUTS:
        raise ValueError(unknown("layout", order, LAYOUTS))
    prefix = getattr(backbone, "num_prefix_tokens", None)  # timm's word for it
    return Layout(order, prefix if isinstance(prefix, int) else None)


def recognise(shape: tuple[int, ...], taller: tuple[int, ...] | None, *, is_square: bool) -> str | None:
    """Tell "nchw" from "nhwc" by an activation's shape without the batch axis, or return None: it cannot be told.

    The axis that grows with the height of the image is the height. Of a square image the two equal axes are the
    places, wherever the channels differ from them.

    Args:
        shape: three axes.
        taller: the same activation's, of images twice as high; None if the network takes no such images.
        is_square: whether the images of `shape` are.
    """
    first, middle, last = shape
    if is_square and middle == last != first:
        return "nchw"
    if taller is not None and len(taller) == 3:
        if taller[0] == first and taller[1] != middle:
            return "nchw"
        if taller[0] != first and taller[2] == last:
            return "nhwc"
    return "nhwc" if is_square and first == middle != last else None


def _root(count: int) -> int:
    """Return the side of the smallest square that holds `count`: math.isqrt is not traced for a symbolic size."""
    side = 0
    while side * side < count:
        side += 1
    return side

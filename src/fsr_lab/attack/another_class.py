"""Which image of a batch stands for another class: what adaptive attacks lead features and masks towards."""

import torch
from torch import Tensor


def next_of_another_class(y: Tensor) -> Tensor:
    """Return for each sample the index of the next one in the batch, round its end, with another label.

    Args:
        y: (N,) int64 labels.

    Returns:
        (N,) int64; a sample's own index where all have its label.
    """
    place = torch.arange(len(y), device=y.device)
    ahead = (place - place[:, None]) % len(y)
    return ahead.masked_fill(y == y[:, None], len(y)).argmin(1).where(_has_another(y), place)


def drawn_of_another_class(y: Tensor) -> Tensor:
    """Draw for each sample the index of one in the batch with another label, each of them as likely.

    Args:
        y: (N,) int64 labels.

    Returns:
        (N,) int64; a sample's own index where all have its label.
    """
    likely = (y != y[:, None]).float()
    likely.diagonal().copy_(~_has_another(y))
    return likely.multinomial(1).squeeze(1)


def _has_another(y: Tensor) -> Tensor:
    return (y != y[:, None]).any(1)

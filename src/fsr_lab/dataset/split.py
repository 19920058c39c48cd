"""The parts of a dataset, and how one is drawn so that every class is in it."""

from typing import NamedTuple

import torch
from torch import Tensor


class Split(NamedTuple):
    """A part of a dataset, in the order of its source.

    Attributes:
        x: (N, C, H, W) uint8 images.
        y: (N,) int64 labels in [0, K).
        ids: (N,) int64, the place of each image in the source's own train or test part.
    """

    x: Tensor
    y: Tensor
    ids: Tensor


def stratified(y: Tensor, count: int, num_classes: int, *, seed: int) -> Tensor:
    """Choose samples so that every class is there: one of each, then in proportion to the classes' sizes.

    Args:
        y: (N,) int64 labels in [0, K).
        count: how many to choose; 0 for none.
        num_classes: K.
        seed: what the choice follows, and nothing else.

    Returns:
        (count,) int64 indices into `y`, ascending.

    Raises:
        ValueError: `count` is not 0 and too small for one of each class, or leaves nothing of some class.
    """
    if count == 0:
        return torch.empty(0, dtype=torch.int64)
    if count < num_classes:
        raise ValueError(f"expected val_size 0 or at least one image of each of {num_classes} classes, got {count}")
    sizes = torch.bincount(y, minlength=num_classes)
    if count > len(y) - num_classes:
        raise ValueError(f"expected val_size of at most {len(y) - num_classes} of {len(y)}, got {count}")
    ideal = (count - num_classes) * (sizes - 1).double() / (len(y) - num_classes)
    take = 1 + ideal.floor().long()
    by_remainder = (ideal - ideal.floor()).sort(descending=True, stable=True).indices
    take[by_remainder[: count - int(take.sum())]] += 1
    emptied = (take >= sizes).nonzero().flatten().tolist()
    if emptied:
        raise ValueError(f"expected val_size to leave images of every class, got {count}: none of {emptied} is left")
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label in range(num_classes):
        members = (y == label).nonzero().squeeze(1)
        chosen.append(members[torch.randperm(len(members), generator=generator)[: take[label]]])
    return torch.cat(chosen).sort().values

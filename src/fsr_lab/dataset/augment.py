"""Augmentation of whole uint8 batches: every draw comes from the generator that is handed in."""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from fsr_lab.core.suggest import unknown

Augmentation = Callable[[Tensor, torch.Generator], Tensor]

PAD = 4  # pixels of black on each side, the custom of CIFAR training


def augmentation(name: str) -> Augmentation:
    """Return the augmentation of this name.

    Args:
        name: "none" or "pad_crop_flip".

    Raises:
        ValueError: there is no augmentation of this name; close names are given.
    """
    if name not in AUGMENTATIONS:
        raise ValueError(unknown("augmentation", name, AUGMENTATIONS))
    return AUGMENTATIONS[name]


def none(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return the batch as it is and draw nothing."""
    return x


def pad_crop_flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Zero-pad by four pixels, crop each image at a random place of its own, mirror one in two.

    Args:
        x: (N, C, H, W) uint8 images on any device.
        generator: a CPU generator, so that every device sees the same crops.

    Returns:
        (N, C, H, W) uint8 images, contiguous, on the device of `x`.
    """
    count, _, height, width = x.shape
    draws = torch.stack(
        [
            torch.randint(2 * PAD + 1, (count,), generator=generator),
            torch.randint(2 * PAD + 1, (count,), generator=generator),
            torch.randint(2, (count,), generator=generator),
        ]
    )
    top, left, mirrored = draws.to(x.device, non_blocking=True)  # one copy, and the host does not wait for it
    # a view of every possible crop, (N, C, 9, 9, H, W), of which each image takes one
    windows = F.pad(x, (PAD, PAD, PAD, PAD)).unfold(2, height, 1).unfold(3, width, 1)
    crops = windows[torch.arange(count, device=x.device), :, top, left]
    return torch.where(mirrored.bool()[:, None, None, None], crops.flip(3), crops)


AUGMENTATIONS: Mapping[str, Augmentation] = {"none": none, "pad_crop_flip": pad_crop_flip}

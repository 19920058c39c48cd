"""The best iterate: an ascent passes by points that fool, and need not end on one."""

import torch
from torch import Tensor

from fsr_lab.core.losses import margin


class BestIterate:
    """Keeps of each sample the iterate with the smallest margin z_y - max other so far, the later of two equal ones.

    Args:
        x: (N, C, H, W) clean images, returned of a sample that no iterate is known of.
        y: (N,) int64 labels.
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x_adv = x
        self.y = y
        self.smallest = torch.full_like(y, torch.inf, dtype=x.dtype)

    def after(self, x_adv: Tensor, logits: Tensor) -> Tensor:
        """Return the best iterates, (N, C, H, W), once these are known, whose logits are (N, K)."""
        value = margin(logits, self.y).to(self.smallest)
        self.x_adv = torch.where((value <= self.smallest)[:, None, None, None], x_adv, self.x_adv)
        self.smallest = torch.minimum(value, self.smallest)
        return self.x_adv

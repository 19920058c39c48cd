"""Patience: how long a sample goes on once it is misclassified (friendly adversarial training)."""

import torch
from torch import Tensor


class Patience:
    """Counts what each sample has left of it; one that has run out stays for good.

    Source: Zhang et al., 2020 (arXiv:2002.11242). All (N,), on the labels' device, never read back.

    Args:
        y: (N,) int64 labels.
        steps: that a sample goes on for.
    """

    def __init__(self, y: Tensor, steps: int) -> None:
        self.y = y
        self.left = torch.full_like(y, steps)
        self.stayed = torch.zeros_like(y, dtype=torch.bool)

    def stays(self, logits: Tensor) -> Tensor:
        """Return which samples keep their present iterate, (N,) bool; its logits are (N, K)."""
        wrong = logits.argmax(1) != self.y
        self.stayed = self.stayed | (wrong & (self.left <= 0))
        self.left = torch.where(wrong & ~self.stayed, self.left - 1, self.left)
        return self.stayed

"""Where halves are too coarse: losses, masks and probabilities are computed in float32 whatever autocast does."""

import torch
from torch import Tensor


def full_precision(values: Tensor) -> Tensor:
    """Return values in float32, or in float64 if they are."""
    return values if values.dtype == torch.float64 else values.float()

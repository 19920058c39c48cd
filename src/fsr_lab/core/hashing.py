"""A short name for exactly these weights."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def state_hash(state: Mapping[str, Tensor]) -> str:
    """Return 16 hex digits that change with any name, shape, type or value of a state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]

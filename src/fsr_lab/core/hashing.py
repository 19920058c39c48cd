"""A short name for exactly these weights, or exactly this code."""

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from torch import Tensor


def state_hash(state: Mapping[str, Tensor]) -> str:
    """Return 16 hex digits that change with any name, shape, type or value of a state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


@cache
def source_hash(*packages: str) -> str:
    """Return 16 hex digits that change with any line of these packages of fsr-lab, as they are on disk."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    for path in sorted(path for package in packages for path in (root / package).glob("**/*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]

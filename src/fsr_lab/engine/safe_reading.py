"""Files of weights, read without running what they contain."""

import pickle
from pathlib import Path
from typing import Any

import torch

SAFETENSORS = ".safetensors"


def read_safely(path: Path) -> Any:
    """Read a checkpoint, or a file of safetensors, to the CPU, refusing anything but tensors and plain containers.

    Raises:
        ValueError: the file is missing, a folder or damaged, or holds objects that would run code when loaded.
        ImportError: it holds safetensors, and their package is not installed.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give a file of weights in it, or run={path} if fsr train made it")
    if path.suffix == SAFETENSORS:
        return _read_safetensors(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as err:
        raise ValueError(f"no checkpoint at {path}") from err
    except pickle.UnpicklingError as err:
        raise ValueError(
            f"refused to load {path}: it is damaged or holds more than tensors and plain containers, which could "
            "run code; ask its author for a plain state dict or safetensors"
        ) from err
    except (RuntimeError, EOFError, OSError, ValueError) as err:
        reason = str(err).partition("\n")[0]
        raise ValueError(f"{path} is not a whole checkpoint ({reason}); fetch or train it again") from err


def _read_safetensors(path: Path) -> Any:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as err:
        raise ImportError("safetensors need an extra: pip install 'fsr-lab[export]'") from err
    try:
        return load_file(path)
    except FileNotFoundError as err:
        raise ValueError(f"no weights at {path}") from err
    except (SafetensorError, OSError, ValueError) as err:
        raise ValueError(f"refused to load {path}: it holds no safetensors ({err}); fetch or export it again") from err

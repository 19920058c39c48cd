"""Checkpoints: written whole or not at all, read without running what they contain."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor, nn

from fsr_lab.core.files import write_atomically
from fsr_lab.core.suggest import unknown
from fsr_lab.engine.release_layout import translated, unwrapped, without_normalization
from fsr_lab.engine.safe_reading import read_safely

CONFIG = "config.yaml"
"""Where a run directory keeps what it was trained from."""
WHICH = ("last", "best")
ONLINE = "online"
_PREFIX = "model."
SHOWN_KEYS = 12
"""How many differing keys of a kind an error names."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint format, through a temporary file, fsync and rename; reads plain containers only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        write_atomically(Path(path), lambda stream: torch.save(checkpoint, stream))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> Any:
        return read_safely(Path(path))


def checkpoint_path(run: Path, which: str) -> Path:
    """Return a run directory's checkpoint.

    Raises:
        ValueError: there is no such checkpoint; the message names those that are there.
    """
    path = run / "checkpoints" / f"{which}.ckpt"
    if not path.is_file():
        there = sorted(file.stem for file in (run / "checkpoints").glob("*.ckpt"))
        raise ValueError(f"no checkpoint {which!r} in {run}; there are: {there or 'none: train the run first'}")
    return path


def kept_weights(path: Path) -> list[str]:
    """Return the names of a checkpoint's weights: its averages, the one that validation judged first, and online."""
    return [*_averages(read_safely(path)), ONLINE]


def load_weights(model: nn.Module, path: Path, average: str | None = None) -> None:
    """Load a run's checkpoint, or a plain state dict of the model or of its bare backbone, into a model.

    State dicts of published networks are known by their layouts, see `release_layout`.

    Args:
        model: takes the weights.
        path: of the checkpoint.
        average: which of its weights, see `kept_weights`; None is the first.

    Raises:
        ValueError: there is no such average, or the weights are of another architecture; the message says which keys
            differ.
    """
    content = read_safely(path)
    state = _chosen(content, average, path)
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise ValueError(f"expected a state dict in {path}, got {type(content).__name__}")
    state = without_normalization(model, state)
    if any(name.startswith(_PREFIX) for name in state):
        state = {name.removeprefix(_PREFIX): value for name, value in state.items() if name.startswith(_PREFIX)}
    state = translated(model, state)
    if differences := _differences(model.state_dict(), state):
        raise ValueError(f"{path} is of another architecture: {differences}; give the model that it was trained with")
    model.load_state_dict(state)


def _chosen(content: Any, average: str | None, path: Path) -> Any:
    """Return what a name stands for in what a file holds, which need not be a state dict."""
    averages = _averages(content)
    name = next(iter(averages), ONLINE) if average is None else average
    if name in averages:
        return averages[name]
    if name != ONLINE:
        raise ValueError(f"{unknown('average', name, [*averages, ONLINE])}, in {path}")
    return unwrapped(content)


def _averages(content: Any) -> Mapping[str, Any]:
    averages = content.get("averages") if isinstance(content, Mapping) else None
    return averages if isinstance(averages, Mapping) else {}


def _differences(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    parts = []
    for kind, names in (
        ("missing", [name for name in own if name not in given]),
        ("unknown", [name for name in given if name not in own]),
        (
            "of another shape",
            [
                f"{name} {tuple(given[name].shape)} for {tuple(own[name].shape)}"
                for name in own
                if name in given and own[name].shape != given[name].shape
            ],
        ),
    ):
        if names:
            more = f" and {len(names) - SHOWN_KEYS} more" if len(names) > SHOWN_KEYS else ""
            parts.append(f"{len(names)} {kind} ({', '.join(names[:SHOWN_KEYS])}{more})")
    return "; ".join(parts)

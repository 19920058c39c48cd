"""The manifest beside a prepared file: what it holds, where that comes from and with which parameters it was made."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

KEYS = ("x_train", "y_train", "x_test", "y_test")


class About(NamedTuple):
    """What a manifest says to a reader: how many images of each part, and where they come from."""

    train: int
    test: int
    source: str


def read_about(manifest: Path) -> About:
    """Return what the manifest of a verified file says."""
    stored = json.loads(manifest.read_text())
    return About(stored["counts"]["train"], stored["counts"]["test"], stored["source"])


def manifest_text(
    target: Path, name: str, source: str, parameters: Mapping[str, object], tensors: Mapping[str, Tensor]
) -> str:
    """Return the manifest of a file that has just been written.

    Args:
        target: the prepared file.
        name: the dataset's name.
        source: where the images come from.
        parameters: what they depend on.
        tensors: what the file holds, by the names of KEYS.
    """
    found = target.stat()
    return as_json(
        {
            "name": name,
            "source": source,
            "parameters": parameters,
            "counts": {"train": len(tensors["x_train"]), "test": len(tensors["x_test"])},
            "shapes": {key: list(tensor.shape) for key, tensor in tensors.items()},
            "sha256": {key: sha256_of(tensor) for key, tensor in tensors.items()},
            "size_bytes": found.st_size,
            "mtime_ns": found.st_mtime_ns,
        }
    )


def as_json(manifest: Mapping[str, object]) -> str:
    """Return a manifest as its file holds it."""
    return json.dumps(manifest, indent=2) + "\n"


def sha256_of(tensor: Tensor) -> str:
    """Return the hash of dtype, shape and contents."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
    digest.update(tensor.numpy().data)
    return digest.hexdigest()


def refuse_changed(target: Path, tensors: Mapping[str, Tensor], hashes: Mapping[str, str], cure: str) -> None:
    """Compare contents with the manifest's hashes.

    Raises:
        ValueError: a pixel or label is another; the message ends with `cure`.
    """
    for key, expected in hashes.items():
        got = sha256_of(tensors[key])
        if got != expected:
            raise ValueError(f"{target} was changed: expected {key} {expected[:12]}, got {got[:12]} (sha256); {cure}")


def refuse_other(target: Path, made_with: Mapping[str, object], parameters: Mapping[str, object]) -> None:
    """Refuse what was made with other parameters; images that were verified serve who would not have verified them.

    Raises:
        ValueError: some parameter is another.
    """
    other = [
        f"{key}={made_with.get(key)} instead of {value}"
        for key, value in json.loads(json.dumps(parameters)).items()
        if made_with.get(key) != value and not (key == "verify" and made_with.get(key) is True)
    ]
    if other:
        raise ValueError(
            f"{target} was prepared with {', '.join(other)}; correct the config, keep both by dataset.folder=DIR, "
            f"or make it anew by fsr prepare with the same dataset options and force=true"
        )

"""One prepared file for each dataset: built once under a lock, memory-mapped, verified before it is used.

Beside it lies a manifest that says what it holds, where that comes from and with which parameters it was made.
"""

import hashlib
import json
import logging
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from fsr_lab.core.files import write_atomically, write_text
from fsr_lab.dataset.arrays import Arrays, checked
from fsr_lab.dataset.manifest import KEYS, as_json, manifest_text, refuse_changed, refuse_other

log = logging.getLogger(__name__)


class Prepared(NamedTuple):
    """What a prepared file holds.

    Attributes:
        x_train, x_test: (N, C, H, W) uint8, memory-mapped.
        y_train, y_test: (N,) int64 in [0, K), memory-mapped.
        data_hash: twelve hexadecimal digits that change with any pixel or label, for provenance.
    """

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    data_hash: str


def prepare(
    name: str,
    folder: Path,
    build: Callable[[], Arrays],
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    parameters: Mapping[str, object],
    force: bool = False,
) -> Path:
    """Write `<name>.pt` and its manifest `<name>.json`, unless they are there.

    Jobs that start at once build once: the others wait for the lock and find the file. The manifest is
    written last, so that without it nothing is prepared, whatever an interruption left. A manifest that tells no
    parameters is an earlier version's; its file is made anew.

    Args:
        name: the dataset's name, the stem of both files.
        folder: where they lie; it is created.
        build: fetches or makes the arrays.
        image_shape: (C, H, W), which the arrays must have.
        num_classes: K, which the labels must have.
        parameters: what the arrays depend on.
        force: builds anew even if the file is there.

    Returns:
        The prepared file.

    Raises:
        ValueError: the arrays are not as they should be, or what is there was made with other parameters.
        OSError: the source cannot be had, or the files cannot be written.
    """
    target, manifest = folder / f"{name}.pt", folder / f"{name}.json"
    if not force and _is_prepared(name, folder, parameters):
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder / f"{name}.lock", name):
        if force or not _is_prepared(name, folder, parameters):
            log.info("preparing %s in %s", name, folder)
            arrays = checked(build(), name=name, image_shape=image_shape, num_classes=num_classes)
            tensors = {key: torch.tensor(getattr(arrays, key)) for key in KEYS}
            manifest.unlink(missing_ok=True)
            write_atomically(target, partial(torch.save, tensors))
            write_text(manifest, manifest_text(target, name, arrays.source, parameters, tensors))
    return target


def load_prepared(name: str, folder: Path, parameters: Mapping[str, object]) -> Prepared:
    """Open a prepared file after verifying it: by size and time, or by contents where the time has changed.

    Args:
        name: the dataset's name.
        folder: where its files lie.
        parameters: what it must have been made with.

    Raises:
        FileNotFoundError: nothing is prepared.
        ValueError: the file is not the one that the manifest describes, or was made with other parameters.
    """
    target, described = folder / f"{name}.pt", folder / f"{name}.json"
    cure = f"run: fsr prepare dataset={name} force=true"
    try:
        manifest = json.loads(described.read_text())
        hashes = {key: manifest["sha256"][key] for key in KEYS}
        size, mtime = manifest["size_bytes"], manifest["mtime_ns"]
        made_with = dict(manifest["parameters"])
        found = target.stat()
    except FileNotFoundError:
        raise FileNotFoundError(f"{target} is not prepared; run: fsr prepare dataset={name}") from None
    except (ValueError, KeyError, TypeError) as err:
        raise ValueError(f"{described} is damaged: expected a manifest, got {err!r}; {cure}") from err
    refuse_other(target, made_with, parameters)
    if found.st_size != size:
        raise ValueError(f"{target} is damaged: expected {size} bytes, got {found.st_size}; {cure}")
    try:
        stored = torch.load(target, mmap=True, weights_only=True)
        tensors = {key: stored[key] for key in KEYS}
    except (RuntimeError, ValueError, LookupError, TypeError, EOFError, pickle.UnpicklingError) as err:
        reason = str(err).splitlines()[0]
        raise ValueError(f"{target} is damaged: expected a prepared file, got {reason}; {cure}") from err
    if found.st_mtime_ns != mtime:
        refuse_changed(target, tensors, hashes, cure)
        with suppress(OSError):  # a shared folder that is read-only is verified anew each time
            write_text(described, as_json(manifest | {"mtime_ns": found.st_mtime_ns}))
    data_hash = hashlib.sha256("".join(hashes.values()).encode()).hexdigest()[:12]
    return Prepared(**tensors, data_hash=data_hash)


@contextmanager
def _alone(lock: Path, name: str) -> Iterator[None]:
    """Hold the lock; who has to wait for another job is told."""
    alone = FileLock(lock)
    try:
        alone.acquire(timeout=0)
    except Timeout:
        log.info("waiting for another job that prepares %s (%s)", name, lock)
        alone.acquire()
    try:
        yield
    finally:
        alone.release()


def _is_prepared(name: str, folder: Path, parameters: Mapping[str, object]) -> bool:
    target, described = folder / f"{name}.pt", folder / f"{name}.json"
    if not (target.exists() and described.exists()):
        return False
    try:
        manifest = json.loads(described.read_text())
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict):
        return True  # something is there; loading it says what is wrong with it
    if not isinstance(manifest.get("parameters"), dict):
        return False
    refuse_other(target, manifest["parameters"], parameters)
    return True

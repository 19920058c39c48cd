"""CIFAR-10 and CIFAR-100 from their official archives, a mirror, or an .npz."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torchvision import datasets as official

from fsr_lab.dataset.archive import Limits, read_members
from fsr_lab.dataset.arrays import Array, Arrays, counted
from fsr_lab.dataset.base import ImageDataModule
from fsr_lab.dataset.download import fetch
from fsr_lab.dataset.npz import KEYS, read_npz
from fsr_lab.dataset.pickles import unpickle_arrays

LIMITS = Limits(member=192 << 20, total=512 << 20)
"""The largest official file, CIFAR-100's training part, has 155 MB; each archive 186 MB."""

# sha256 of CIFAR-10's bytes in the official order: images (N, 32, 32, 3) uint8, labels int64
_CIFAR10_SHA256 = {
    "x_train": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
    "y_train": "f5cfe00b0f00968c0cc5ff3b1d2de51b10e33efa277c2986f4e0fa63e58c9f4f",
    "x_test": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
    "y_test": "cbb7365de8ed11f05cc4c3a1e7f78144127c5e851efd83762fb18202461230bb",
}


class _Layout(NamedTuple):
    """An official archive: its folder, its files with their md5 in order, and where the labels are.

    The checksums are torchvision's, which takes those of the archives from the official page.
    """

    title: str
    name: str
    url: str
    md5: str
    base: str
    train: Sequence[Sequence[str]]
    test: Sequence[Sequence[str]]
    labels: str


@dataclass(kw_only=True, eq=False)
class CIFAR10(ImageDataModule):
    """Learning multiple layers of features from tiny images (Krizhevsky, 2009): 60,000 images, 10 classes.

    Sources in order: `source` if given (the official archive, its extracted folder, or an .npz with x_train,
    y_train, x_test, y_test); the official archive in `folder`; the official site; the mirrors.

    Args:
        verify: whether anything but the true CIFAR-10 is refused, by md5 of each official file or sha256 of each
            array of an .npz.
        mirrors: addresses of folders that hold the official archive under its name, in the order of trust.
    """

    verify: bool
    mirrors: Sequence[str]

    def build_arrays(self) -> Arrays:
        """Read the images from the first source that there is."""
        if self.source is not None and self.source.suffix == ".npz":
            arrays = read_npz(self.source)
            if self.verify:
                _verify_arrays(arrays, _CIFAR10_SHA256, self.source)
            return arrays
        return _read(_CIFAR10, self.source, self.folder, self.mirrors, self.verify)


@dataclass(kw_only=True, eq=False)
class CIFAR100(ImageDataModule):
    """Learning multiple layers of features from tiny images (Krizhevsky, 2009): 60,000 images, 100 fine classes.

    Sources as for CIFAR-10.

    Args:
        verify: whether anything but the true CIFAR-100 is refused, by md5 of each official file; of an .npz, for
            which nobody publishes a checksum, the count of images of each class is checked.
        mirrors: addresses of folders that hold the official archive under its name, in the order of trust.
    """

    verify: bool
    mirrors: Sequence[str]

    def build_arrays(self) -> Arrays:
        """Read the images and their fine labels from the first source that there is."""
        if self.source is not None and self.source.suffix == ".npz":
            arrays = read_npz(self.source)
            return counted(arrays, name=self.name, train=[500] * 100, test=[100] * 100) if self.verify else arrays
        return _read(_CIFAR100, self.source, self.folder, self.mirrors, self.verify)


def _layout(title: str, torchvisions: type[official.CIFAR10], labels: str) -> _Layout:
    its = torchvisions
    return _Layout(
        title, its.filename, its.url, its.tgz_md5, its.base_folder, its.train_list, its.test_list, labels
    )  # fmt: skip


_CIFAR10 = _layout("CIFAR-10", official.CIFAR10, "labels")
_CIFAR100 = _layout("CIFAR-100", official.CIFAR100, "fine_labels")


def _verify_arrays(arrays: Arrays, sha256: Mapping[str, str], source: Path) -> None:
    for key in KEYS:
        array: Array = getattr(arrays, key)
        data = array if key.startswith("x") else array.astype(np.int64)
        got = hashlib.sha256(data.tobytes()).hexdigest()
        if got != sha256[key]:
            raise ValueError(_other("CIFAR-10", f"{key} of {source}", "sha256", sha256[key], got))


def _read(layout: _Layout, source: Path | None, folder: Path, mirrors: Sequence[str], verify: bool) -> Arrays:
    cure = f"dataset.source=/path/to/{layout.name}, its extracted folder, or an .npz"
    origin = str(source)
    if source is None:
        urls = [layout.url, *(f"{mirror}/{layout.name}" for mirror in mirrors)]
        source, origin = fetch(folder, layout.name, urls, md5=layout.md5, offline=cure)
    wanted = [name for name, _ in (*layout.train, *layout.test)]
    found = dict(read_members(source, layout.base, wanted.__contains__, limits=LIMITS, cure=cure))
    if missing := [name for name in wanted if name not in found]:
        raise FileNotFoundError(f"{source} lacks {layout.base}/{missing[0]}; give {cure}")

    def part(files: Sequence[Sequence[str]]) -> tuple[Array, Array]:
        batches = []
        for name, md5 in files:
            where = f"{name} of {source}"
            got = hashlib.md5(found[name], usedforsecurity=False).hexdigest()
            if verify and got != md5:
                raise ValueError(_other(layout.title, where, "md5", md5, got))
            batches.append(_batch(found.pop(name), where, layout.labels))
        return np.concatenate([x for x, _ in batches]), np.concatenate([y for _, y in batches])

    return Arrays(*part(layout.train), *part(layout.test), source=origin)


def _batch(data: bytes, name: str, labels: str) -> tuple[Array, Array]:
    """Return (N, 3, 32, 32) uint8 images and (N,) int64 labels of one official file."""
    content = unpickle_arrays(data, name)
    if missing := [key for key in ("data", labels) if key not in content]:
        raise ValueError(f"{name}: expected pickled data and labels, got no {missing[0]!r} in it; replace it")
    x, y = content["data"], np.asarray(content[labels])
    if not isinstance(x, np.ndarray) or x.ndim != 2 or x.shape[1] != 3 * 32 * 32 or y.shape != x.shape[:1]:
        raise ValueError(
            f"{name}: expected (N, 3072) data and N labels, got {np.shape(np.asarray(x))}, {y.shape}; replace it"
        )
    return x.reshape(-1, 3, 32, 32), y


def _other(title: str, what: str, kind: str, expected: str, got: str) -> str:
    return (
        f"{what} is not {title}'s: expected {kind} {expected}, got {got}; "
        f"fetch it again, or set dataset.verify=false if it is meant to differ"
    )

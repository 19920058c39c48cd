"""CIFAR-10 from its official archive, a mirror of it, or an .npz; pickles are read without running them."""

import codecs
import gzip
import hashlib
import io
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torchvision import datasets as official

from fsr_lab.dataset.arrays import Array, Arrays
from fsr_lab.dataset.base import ImageDataModule
from fsr_lab.dataset.download import download

MIRROR = "https://dataset.bj.bcebos.com/cifar/cifar-10-python.tar.gz"  # PaddlePaddle's copy: the same bytes
OFFLINE = "dataset.source=/path/to/cifar10.npz or the official archive"

# sha256 of the arrays' bytes in the official order: images (N, 32, 32, 3) uint8, labels int64
_SHA256 = {
    "x_train": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
    "y_train": "f5cfe00b0f00968c0cc5ff3b1d2de51b10e33efa277c2986f4e0fa63e58c9f4f",
    "x_test": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
    "y_test": "cbb7365de8ed11f05cc4c3a1e7f78144127c5e851efd83762fb18202461230bb",
}
_MAX_MEMBER_BYTES = 64 << 20  # an official batch has 31 MB; more is not CIFAR-10

# what every pickled array starts from; numpy 1 and numpy 2 keep it in different places
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ADMITTED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("_codecs", "encode"): codecs.encode,
}

Reader = Callable[[str], bytes]


@dataclass(kw_only=True, eq=False)
class CIFAR10(ImageDataModule):
    """Learning multiple layers of features from tiny images (Krizhevsky, 2009): 60,000 images, 10 classes.

    Sources in order: `source` if given (the official archive, its extracted folder, or an .npz with x_train,
    y_train, x_test, y_test); the official archive in `folder`; the official site; a mirror.

    Args:
        verify: whether anything but the true CIFAR-10 is refused.
    """

    verify: bool

    def build_arrays(self) -> Arrays:
        """Read the images from the first source that there is."""
        archive = self.folder / official.CIFAR10.filename
        source, origin = self.source or archive, str(self.source or archive)
        if self.source is None and not archive.exists():
            origin = download([official.CIFAR10.url, MIRROR], archive, md5=official.CIFAR10.tgz_md5, offline=OFFLINE)
        if not source.exists():
            raise FileNotFoundError(f"{source} does not exist; give {OFFLINE}")
        if source.suffix == ".npz":
            return _from_npz(source, self.verify)
        if source.is_dir():
            return _from_batches(lambda name: _file(source, name), origin, self.verify)
        try:
            with tarfile.open(source, "r:gz") as archived:
                return _from_batches(lambda name: _member(archived, name), origin, self.verify)
        except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, KeyError) as err:
            raise ValueError(
                f"{source} is damaged: expected the official archive, got {type(err).__name__} ({err}); "
                f"delete it and run again, or give {OFFLINE}"
            ) from err


def _from_npz(source: Path, verify: bool) -> Arrays:
    try:
        with source.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            arrays: dict[str, Array] = {key: stored[key] for key in _SHA256}
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as err:
        expected = ", ".join(_SHA256)
        raise ValueError(f"{source} is damaged: expected arrays {expected}, got {err}; replace it") from err
    if verify:
        for key, expected in _SHA256.items():
            array = arrays[key] if key.startswith("x") else arrays[key].astype(np.int64)
            got = hashlib.sha256(array.tobytes()).hexdigest()
            if got != expected:
                raise ValueError(_other(f"{key} of {source}", "sha256", expected, got))
    return Arrays(**arrays, source=str(source))


def _from_batches(read: Reader, source: str, verify: bool) -> Arrays:
    def batches(files: list[list[str]]) -> list[tuple[Array, Array]]:
        return [_batch(read(name), f"{name} of {source}", md5 if verify else None) for name, md5 in files]

    train, test = batches(official.CIFAR10.train_list), batches(official.CIFAR10.test_list)
    return Arrays(
        np.concatenate([x for x, _ in train]),
        np.concatenate([y for _, y in train]),
        np.concatenate([x for x, _ in test]),
        np.concatenate([y for _, y in test]),
        source=source,
    )


def _file(folder: Path, name: str) -> bytes:
    if not (folder / name).is_file():
        raise FileNotFoundError(f"{folder / name} does not exist; give {OFFLINE}")
    return (folder / name).read_bytes()


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    """Read one batch by its name; nothing is written, so no path in the archive can lead anywhere."""
    member = archive.getmember(f"{official.CIFAR10.base_folder}/{name}")
    stream = archive.extractfile(member) if member.isfile() and member.size <= _MAX_MEMBER_BYTES else None
    if stream is None:
        raise ValueError(
            f"{archive.name!r}: expected {name} to be a file of at most {_MAX_MEMBER_BYTES} bytes, got "
            f"{member.size} bytes of tar type {member.type!r}; give {OFFLINE}"
        )
    return stream.read()


def _batch(data: bytes, name: str, md5: str | None) -> tuple[Array, Array]:
    """Return (N, 3, 32, 32) uint8 images and (N,) int64 labels of one official batch file."""
    got = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if md5 is not None and got != md5:
        raise ValueError(_other(name, "md5", md5, got))
    try:
        content = _ArraysOnly(io.BytesIO(data), encoding="latin1").load()
        x, y = content["data"], np.asarray(content["labels"])
    except (pickle.UnpicklingError, ValueError, LookupError, TypeError, AttributeError, EOFError) as err:
        raise ValueError(f"{name}: expected pickled data and labels, got {err}; replace it") from err
    if not isinstance(x, np.ndarray) or x.ndim != 2 or x.shape[1] != 3 * 32 * 32 or y.shape != x.shape[:1]:
        raise ValueError(f"{name}: expected (N, 3072) data and N labels, got {np.shape(x)}, {y.shape}; replace it")
    return x.reshape(-1, 3, 32, 32), y


class _ArraysOnly(pickle.Unpickler):
    """Reads dicts, lists, text, numbers and numpy arrays; a pickle that asks for anything else is refused."""

    def find_class(self, module: str, name: str) -> object:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"a pickle that would load {module}.{name} (refused)") from None


def _other(what: str, kind: str, expected: str, got: str) -> str:
    return (
        f"{what} is not CIFAR-10's: expected {kind} {expected}, got {got}; "
        f"fetch it again, or set dataset.verify=false if it is meant to differ"
    )

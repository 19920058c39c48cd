"""SVHN's cropped digits from the official .mat files or an .npz."""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.io import loadmat, whosmat
from scipy.io.matlab import MatReadError
from torchvision import datasets as official

from fsr_lab.dataset.arrays import Array, Arrays, counted
from fsr_lab.dataset.base import ImageDataModule
from fsr_lab.dataset.download import fetch, md5_of
from fsr_lab.dataset.npz import read_npz

# images of each digit in the official parts: 73,257 and 26,032
TRAIN_COUNTS = (4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659)
TEST_COUNTS = (1744, 5099, 4149, 2882, 2523, 2384, 1977, 2019, 1660, 1595)

_MAX_BYTES = 2 << 30  # `extra`, the largest, has 1.6 GB unpacked
_CURE = "dataset.source=/path/to/the folder with train_32x32.mat and test_32x32.mat, or an .npz"


@dataclass(kw_only=True, eq=False)
class SVHN(ImageDataModule):
    """Reading digits in natural images with unsupervised feature learning (Netzer et al., 2011): cropped digits.

    The official files call the digit zero 10; here it is class 0. Sources in order: `source` if given (the folder
    with the official files, or an .npz with x_train, y_train, x_test, y_test); those files in `folder`; the official
    site; the mirrors.

    Args:
        extra: whether the 531,131 easier images of `extra` join the training part; the paper's protocol has 73,257.
        verify: whether anything but the true SVHN is refused, by md5 (torchvision's) of each file; of an .npz the
            count of images of each digit is checked.
        mirrors: addresses of folders that hold the official files under their names, in the order of trust.
    """

    extra: bool
    verify: bool
    mirrors: Sequence[str]

    def build_arrays(self) -> Arrays:
        """Read the images from the first source that there is."""
        if self.source is not None and self.source.suffix == ".npz":
            if self.extra:
                raise ValueError("expected dataset.extra=false with an .npz: put the extra images into its x_train")
            arrays = read_npz(self.source)
            verified = {"name": self.name, "train": TRAIN_COUNTS, "test": TEST_COUNTS}
            return counted(arrays, **verified) if self.verify else arrays  # type: ignore[arg-type]
        train, origin = self._part("train")
        test, _ = self._part("test")
        if self.extra:
            extra, _ = self._part("extra")
            train = (np.concatenate([train[0], extra[0]]), np.concatenate([train[1], extra[1]]))
        return Arrays(*train, *test, source=origin)

    def _part(self, part: str) -> tuple[tuple[Array, Array], str]:
        url, name, md5 = official.SVHN.split_list[part]
        if self.source is None:
            urls = [url, *(f"{mirror}/{name}" for mirror in self.mirrors)]
            path, origin = fetch(self.folder, name, urls, md5=md5, offline=_CURE)
        else:
            path = origin = self.source / name
            if not path.is_file():
                raise FileNotFoundError(f"{path} does not exist; give {_CURE}")
        if self.verify and (got := md5_of(path)) != md5:
            raise ValueError(
                f"{path} is not SVHN's: expected md5 {md5}, got {got}; "
                f"fetch it again, or set dataset.verify=false if it is meant to differ"
            )
        return read_mat(path), str(origin)


def read_mat(path: Path) -> tuple[Array, Array]:
    """Return (N, 3, 32, 32) uint8 images and (N,) int64 labels in [0, 10) of one official file.

    Args:
        path: a .mat (version 5) with X (32, 32, 3, N) uint8 and y (N, 1) in [1, 10], where 10 is the digit zero.

    Raises:
        ValueError: it is damaged, another file, or unpacks to more than any official one.
    """
    try:
        _refuse_bomb(path)
        shapes = {name: shape for name, shape, _ in whosmat(path)}
        if not {"X", "y"} <= set(shapes):
            raise ValueError(f"arrays {sorted(shapes)}")
        stored = loadmat(path, variable_names=["X", "y"])
        x, y = stored["X"], stored["y"].ravel()
    except (
        MatReadError, ValueError, TypeError, LookupError, OverflowError, MemoryError, EOFError, OSError,
        NotImplementedError, zlib.error, struct.error,
    ) as err:  # fmt: skip
        reason = str(err).splitlines()[0] if str(err) else type(err).__name__
        raise ValueError(
            f"{path} is damaged: expected arrays X and y, got {reason}; delete it, or give {_CURE}"
        ) from err
    if x.ndim != 4 or x.shape[:3] != (32, 32, 3) or x.dtype != np.uint8:
        raise ValueError(f"{path}: expected X (32, 32, 3, N) of uint8, got {x.shape} of {x.dtype}; give {_CURE}")
    if y.shape != (x.shape[3],):
        raise ValueError(f"{path}: expected a label for each of {x.shape[3]} images, got {y.size}; give {_CURE}")
    if not np.issubdtype(y.dtype, np.number) or not np.isin(y, range(1, 11)).all() or not y.size:
        strange = [value for value in y.tolist() if value not in range(1, 11)]
        raise ValueError(f"{path}: expected labels 1 to 10, got {strange[0] if strange else 'none'}; give {_CURE}")
    return x.transpose(3, 2, 0, 1), y.astype(np.int64) % 10


def _refuse_bomb(path: Path) -> None:
    """Count what the compressed elements unpack to, a piece at a time, before anything is read whole."""
    total = 0
    with path.open("rb") as stream:
        stream.seek(128)  # the header
        while len(tag := stream.read(8)) == 8:
            kind, size = struct.unpack("<II", tag)
            if kind != 15:  # not compressed
                stream.seek(size, 1)
                continue
            unpacker, left = zlib.decompressobj(), size
            while left > 0 and (piece := stream.read(min(left, 1 << 20))):
                left -= len(piece)
                while piece:
                    total += len(unpacker.decompress(piece, 1 << 24))
                    piece = unpacker.unconsumed_tail
                    if total > _MAX_BYTES:
                        raise ValueError(f"more than {_MAX_BYTES} bytes unpacked")

"""Images and labels from an .npz: the form in which a user has them at hand."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from fsr_lab.dataset.arrays import Array, Arrays

KEYS = ("x_train", "y_train", "x_test", "y_test")

_FREE_BYTES, _MAX_RATIO = 64 << 20, 100  # images do not shrink a hundredfold; what does is a bomb, if it is large


def read_npz(source: Path) -> Arrays:
    """Return the arrays x_train, y_train, x_test, y_test of a file; pickled objects in it are refused.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, lacks one of them, or unpacks to far more than it weighs.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist; correct dataset.source")
    try:
        with zipfile.ZipFile(source) as packed:
            size = sum(member.file_size for member in packed.infolist())
        if size > max(_FREE_BYTES, _MAX_RATIO * source.stat().st_size):
            raise ValueError(f"{size} bytes out of {source.stat().st_size}")
        with np.load(source, allow_pickle=False) as stored:
            arrays: dict[str, Array] = {key: stored[key] for key in KEYS}
    except (ValueError, KeyError, TypeError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as err:
        raise ValueError(f"{source} is damaged: expected arrays {', '.join(KEYS)}, got {err}; replace it") from err
    return Arrays(**arrays, source=str(source))

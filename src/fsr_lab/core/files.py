"""Files that appear whole or not at all."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file by temporary, fsync and rename, so that no reader and no crash ever sees half of it.

    Args:
        path: the file to create or replace; its folder is created.
        write: fills the open binary stream.

    Raises:
        OSError: the disk is full or the folder cannot be written; what stood at `path` before still stands.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as err:
        # torch.save hides a full disk behind a RuntimeError of its own writer
        cause = err if isinstance(err, OSError) else err.__context__
        if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
            text = f"no space left on the disk of {path.parent}: free some and run again"
            raise OSError(errno.ENOSPC, text) from err
        raise
    finally:
        temporary.unlink(missing_ok=True)


def check_folder(name: str, folder: Path) -> None:
    """Refuse a place for a folder, which need not be there yet, where a file stands in its way.

    Raises:
        ValueError: as said; `name` is what the place is called on the command line.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"expected {name}={folder} to be a folder, and {there} is a file; give another place")


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file whole or not at all."""
    write_atomically(path, lambda stream: stream.write(text.encode()))

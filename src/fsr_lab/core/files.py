"""Files that appear whole or not at all."""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

CAUSES = {
    errno.ENOSPC: "no space left on the disk of {place}: free some and run again",
    errno.EDQUOT: "the disk quota for {place} is used up: free some and run again",
    errno.EFBIG: "a file in {place} would be larger than is allowed here: raise the limit (ulimit -f) and run again",
    errno.EACCES: "{place} cannot be written (permission denied): {elsewhere}",
    errno.EPERM: "{place} cannot be written (not permitted): {elsewhere}",
    errno.EROFS: "{place} cannot be written (a read-only file system): {elsewhere}",
    errno.ENOTDIR: "{place} cannot be written (a file stands where a folder should): {elsewhere}",
}
"""What a disk may refuse, with the cure."""
ELSEWHERE = "make it writable, or give another place, paths.runs=DIR or paths.data=DIR"


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file by temporary, fsync and rename, so that no reader and no crash ever sees half of it.

    Args:
        path: the file to create or replace; its folder is created.
        write: fills the open binary stream.

    Raises:
        OSError: the disk is full or the folder cannot be written; what stood at `path` before still stands.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    with disk_errors_explained(path.parent):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as stream:
                write(stream)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        finally:
            with suppress(OSError):  # where nothing can be written, nothing can be removed
                temporary.unlink(missing_ok=True)


@contextmanager
def disk_errors_explained(place: Path) -> Iterator[None]:
    """Give a disk's refusal of a block one line of cause and cure; errors that tell more than that pass as they are.

    Args:
        place: the folder to name where the error names no file.

    Raises:
        OSError: as said, with the number it had.
    """
    try:
        yield
    except (OSError, RuntimeError) as err:
        # torch.save hides a full disk behind a RuntimeError of its own writer
        cause = err if isinstance(err, OSError) else err.__context__
        if not isinstance(cause, OSError) or cause.errno is None or (told := explained(cause, place)) is cause:
            raise
        raise told from err


def explained(err: OSError, place: Path | None = None) -> OSError:
    """Return a disk's refusal with its place, its cause and its cure; any other error as it is."""
    if err.errno not in CAUSES or err.strerror != os.strerror(err.errno):
        return err  # nothing about the disk, or told by us already
    where = Path(os.fsdecode(err.filename)).parent if isinstance(err.filename, (str, bytes)) else place
    if where is None:
        return err
    text = CAUSES[err.errno].format(place=where, elsewhere=ELSEWHERE)
    return OSError(err.errno, text)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed processes left below a folder in which nobody else works now."""
    for path in folder.rglob(".*.tmp"):
        path.unlink(missing_ok=True)


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

"""A job's own log: what it prints goes on to where it went before, and into a file of its directory."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import TextIO


class Tee:
    """A text stream that writes to a file, too; it is no terminal, so that progress comes as lines, fit for a file.

    Where the disk takes no more, the file misses what is said: the job's own files will tell of the disk.
    """

    def __init__(self, stream: TextIO, file: TextIO) -> None:
        self.stream, self.file = stream, file
        self.encoding = stream.encoding

    def write(self, text: str) -> int:
        """Write to both."""
        self.stream.write(text)
        with suppress(OSError):
            self.file.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush both."""
        self.stream.flush()
        with suppress(OSError):
            self.file.flush()

    def isatty(self) -> bool:
        """Tell that this is no terminal."""
        return False

    def fileno(self) -> int:
        """Return the stream's: what a subprocess writes goes there alone."""
        return self.stream.fileno()


@contextmanager
def logged(path: Path) -> Iterator[TextIO]:
    """Append what is printed within a block to a file, beside where it goes anyway, and yield the file."""
    with ExitStack() as stack:
        file = path.open("a", buffering=1, errors="replace")
        stack.callback(_close, file)
        stack.enter_context(redirect_stdout(Tee(sys.stdout, file)))
        stack.enter_context(redirect_stderr(Tee(sys.stderr, file)))
        yield file


def _close(file: TextIO) -> None:
    """Close a file, which writes what is left, where the disk lets it."""
    with suppress(OSError):
        file.close()

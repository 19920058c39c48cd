"""A job's own log: what it prints goes on to where it went before, and into a file of its directory."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TextIO


class Tee:
    """A text stream that writes to two; it is no terminal, so that progress comes as lines, which a file can hold."""

    def __init__(self, first: TextIO, second: TextIO) -> None:
        self.streams = (first, second)
        self.encoding = first.encoding

    def write(self, text: str) -> int:
        """Write to both."""
        for stream in self.streams:
            stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush both."""
        for stream in self.streams:
            stream.flush()

    def isatty(self) -> bool:
        """Tell that this is no terminal."""
        return False

    def fileno(self) -> int:
        """Return the first stream's: what a subprocess writes goes there alone."""
        return self.streams[0].fileno()


@contextmanager
def logged(path: Path) -> Iterator[TextIO]:
    """Append what is printed within a block to a file, beside where it goes anyway, and yield the file."""
    with ExitStack() as stack:
        file = stack.enter_context(path.open("a", buffering=1, errors="replace"))
        stack.enter_context(redirect_stdout(Tee(sys.stdout, file)))
        stack.enter_context(redirect_stderr(Tee(sys.stderr, file)))
        yield file

"""One process per run directory: a lock that its holder's death frees."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK, HOLDER = ".run.lock", ".run.holder"


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Hold a run directory for the length of a block; the process that holds it may take it again.

    Raises:
        RuntimeError: another process holds it; the message names its pid and host.
    """
    run.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run / LOCK, is_singleton=True, timeout=0)
    try:
        lock.acquire()
    except Timeout as err:
        holder = (run / HOLDER).read_text().strip() if (run / HOLDER).is_file() else "another process"
        raise RuntimeError(f"{run} is held by {holder}; wait for it, or stop it") from err
    try:
        (run / HOLDER).write_text(f"pid {os.getpid()} on {socket.gethostname()}\n")
        yield
    finally:
        lock.release()


def is_held(run: Path) -> bool:
    """Tell whether a process that lives holds a run directory."""
    if not (run / LOCK).is_file():
        return False
    lock = FileLock(run / LOCK, is_singleton=True, timeout=0)
    if lock.is_locked:
        return True
    try:
        with lock:
            return False
    except Timeout:
        return True

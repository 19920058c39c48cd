"""One process to a run directory: a lock that dies with its process, and a note that says who holds it.

The lock is flock's, so that a killed process leaves none behind. On NFS the kernel makes it a lock of the server, which
other machines see. Not covered: a mount that keeps locks to its machine (`nolock`, `local_lock=flock`, Lustre's
`localflock`), where two machines do not see each other, and a file system without any, which is said and then left be.
"""

import errno
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from fsr_lab.core.files import write_text

log = logging.getLogger(__name__)

LOCK, HOLDER = ".lock", ".holder.json"
"""The lock file stays for ever, as one that is removed guards nothing; the note goes with its holder."""
PATIENCE_SECONDS = 0.5
"""How long a lock is waited for: those who only look hold it for an instant."""
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)


class HeldRunError(RuntimeError):
    """Another process works in this run directory."""


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Hold a run directory for as long as the block lasts, and no longer than this process lives.

    The process that holds it may take it again. Not for the ranks and shards of a run: the process that starts them
    holds it for all.

    Args:
        run: the run directory; it is created.

    Raises:
        HeldRunError: another process holds it; the message names its pid, its machine and since when.
        OSError: the directory cannot be written.
    """
    run.mkdir(parents=True, exist_ok=True)
    lock = _lock(run)
    if lock.is_locked:
        with lock:
            yield
        return
    try:
        lock.acquire(timeout=PATIENCE_SECONDS)
    except Timeout:
        raise HeldRunError(
            f"{run} is in use by {_holder(run)}; wait for it, stop it, or give this run another name="
        ) from None
    except OSError as err:
        if err.errno not in NO_LOCKS:
            raise
        log.warning("%s lies on a file system without locks: see to it that no second process works there", run)
    about = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now().astimezone().isoformat()}
    try:
        write_text(run / HOLDER, json.dumps(about) + "\n")
        yield
    finally:
        (run / HOLDER).unlink(missing_ok=True)
        lock.release()


def is_held(run: Path) -> bool:
    """Tell whether a living process, this one included, works in a run directory; one that is not there is free."""
    if not (run / LOCK).is_file():
        return False
    lock = _lock(run)
    if lock.is_locked:
        return True
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:  # a read-only archive, or no locks there: nobody can be seen to hold it
        return False
    lock.release()
    return False


def _lock(run: Path) -> FileLock:
    """Return this process's one lock of a run; a soft lock, which it could fall back to, would outlive a kill."""
    path = run.resolve() / LOCK
    return FileLock(path, fallback_to_soft=False, is_singleton=True, thread_local=False, poll_interval=0.02)


def _holder(run: Path) -> str:
    """Return who holds a run, as its note tells; it is written a moment after the lock is taken."""
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            about = json.loads((run / HOLDER).read_text())
            return f"process {about['pid']} on {about['host']} since {about['since'].replace('T', ' ')[:19]}"
        except (OSError, ValueError, LookupError):
            if time.monotonic() > until:
                return "another process"
            time.sleep(0.02)

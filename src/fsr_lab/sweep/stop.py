"""A sweep whose jobs run in other processes of this machine, asked to stop: each saves, and no further one begins."""

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from fsr_lab.sweep.index import current
from fsr_lab.sweep.job import JOB, RUNNING

MARK = ".stopping"


def is_stopping(sweep: Path) -> bool:
    """Tell whether the jobs of a sweep that have not begun should not."""
    return (sweep / MARK).exists()


@contextmanager
def stopping(sweep: Path, *, hear_ctrl_c: bool) -> Iterator[None]:
    """Let the first Ctrl-C or SIGTERM stop the jobs of a block in their own way; the second stops the block at once.

    Args:
        sweep: the folder.
        hear_ctrl_c: whether a terminal's Ctrl-C reaches the jobs' processes without us.

    Raises:
        KeyboardInterrupt: the block was asked to stop, and its jobs have.
    """
    mark = sweep / MARK
    mark.unlink(missing_ok=True)

    def asked(number: int, frame: FrameType | None) -> None:
        mark.touch()
        for each, handler in before.items():
            signal.signal(each, handler)
        print("stopping: running jobs finish their step and save", file=sys.stderr, flush=True)
        if number == signal.SIGTERM or not hear_ctrl_c:
            signal_jobs(sweep, signal.SIGTERM)

    before = {number: signal.signal(number, asked) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
        was_asked = mark.exists()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        mark.unlink(missing_ok=True)
    if was_asked:
        raise KeyboardInterrupt


@contextmanager
def stopping_job() -> Iterator[None]:
    """Let a SIGTERM stop a worker process's job as a Ctrl-C does, where it or its launcher would end the process."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def signal_jobs(sweep: Path, number: signal.Signals) -> None:
    """Send a signal to the processes on this machine that run the sweep's jobs."""
    for path in sweep.glob(f"**/{JOB}"):
        job = current(path.parent)
        pid, host = job.where if job is not None else (0, "")
        if job is not None and job.state == RUNNING and host == socket.gethostname() and pid != os.getpid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

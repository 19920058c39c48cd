"""A job of Slurm whose time is up: noted as queued, then queued again by submitit."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

TIME_IS_UP = signal.SIGUSR2
"""What submitit has Slurm send before it kills a job."""


class Requeue:
    """submitit's answer to Slurm's word that the time is up: the job is queued again, and this process ends.

    Training calls it once a checkpoint is written; elsewhere it comes at once.

    Attributes:
        is_done: whether it is queued.
    """

    def __init__(self, note: Callable[[], None], requeue: Callable[[int, FrameType | None], None]) -> None:
        self.is_done = self._is_asked = False
        self._note, self._requeue = note, requeue

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Answer a signal, the first.

        Raises:
            SystemExit: it is queued.
            RuntimeError: it has been out of time too often.
        """
        if self._is_asked:
            return
        self._is_asked = True
        print("Slurm: the time is up", file=sys.stderr, flush=True)
        self._note()  # first, as the new attempt may begin before this one has ended
        try:
            self._requeue(number, frame)
        except SystemExit:
            self.is_done = True
            raise
        except Exception as err:  # submitit's own
            again = "retry=true goes on with it; give more launcher.resubmissions or launcher.minutes"
            raise RuntimeError(f"{err} {again}") from err


@contextmanager
def requeueing(note: Callable[[], None]) -> Iterator[Requeue | None]:
    """Let a job of submitit be noted before it is queued again; yield None in another process.

    Args:
        note: says in the job's directory that it is queued.
    """
    before = signal.getsignal(TIME_IS_UP)
    if "SUBMITIT_FOLDER" not in os.environ or not callable(before):
        yield None
        return
    requeue = Requeue(note, before)
    signal.signal(TIME_IS_UP, requeue)
    try:
        yield requeue
    finally:
        signal.signal(TIME_IS_UP, before)

"""A tracker that cannot hurt: whatever it does, the run goes on as if it were not there."""

import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from typing import Any, Literal

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger

Status = Literal["success", "failed"]
Word = Callable[[Any], None]


class Tracker(Logger):
    """Passes on what is logged to another logger, which lives in a daemon thread of its own.

    The run waits for it nowhere but in `close`, and asks it for nothing: `name`, `version` and the folders are
    answered here. What the other one raises, when it is built, fed or closed, ends it, and so does the end of
    `close`'s patience. Either is one line on standard error, the only one this tracker ever writes. On other ranks
    than the first it does nothing.

    Args:
        name: what that line calls it.
        build: makes the other logger; called in the thread, once there is something to log.
        end: called in the thread with the other logger and the run's status, after its own `finalize`.
        abandon: called by whoever waits, where it is left behind.
        capacity: how many words wait for it at most; what comes while so many do is lost to it.
    """

    def __init__(
        self,
        name: str,
        build: Callable[[], Logger],
        *,
        end: Callable[[Any, Status], None] | None = None,
        abandon: Callable[[], None] | None = None,
        capacity: int = 10_000,
    ) -> None:
        super().__init__()
        self._name = name
        self._build = build
        self._end = end
        self._abandon = abandon
        self._capacity = capacity
        self._words: SimpleQueue[Word | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._status: Status = "failed"
        self._is_lost = False
        self._has_spoken = threading.Lock()

    @property
    def name(self) -> str:
        return self._name

    @property
    def version(self) -> str:
        return ""

    def tell(self, word: Word) -> None:
        """Have the thread call `word` with the other logger, after all it was told before."""
        if self._is_lost or rank_zero_only.rank > 0:  # type: ignore[attr-defined]
            return
        if self._words.qsize() >= self._capacity:
            self._say("does not keep up, and misses what is logged meanwhile")
            return
        self._words.put(word)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=f"tracker {self._name}", daemon=True)
            self._thread.start()

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        copy = dict(metrics)
        self.tell(lambda logger: logger.log_metrics(copy, step))

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        self.tell(lambda logger: logger.log_hyperparams(params, *args, **kwargs))

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        self.tell(lambda logger: logger.after_save_checkpoint(checkpoint_callback))

    def save(self) -> None:
        """Do nothing: the other logger saves when it is closed."""

    def finalize(self, status: str) -> None:
        """Do nothing: Lightning says this after the fit, and there is more to log; `close` is the end."""

    def ask_to_end(self, status: Status) -> None:
        """Let the other logger close once it has done all it was told; it is told nothing from now on."""
        self._status = status
        self._words.put(None)

    def wait(self, seconds: float) -> None:
        """Wait for it to have ended, for so long at most; then it is left behind."""
        if self._thread is not None:
            self._thread.join(max(seconds, 0.0))
            if self._thread.is_alive():
                self._say("does not end, and is left behind")
                if self._abandon is not None:
                    self._abandon()
        self._is_lost = True

    def _work(self) -> None:
        try:
            logger = self._build()
            for word in iter(self._words.get, None):
                word(logger)
            logger.finalize(self._status)
            if self._end is not None:
                self._end(logger, self._status)
        except BaseException as err:  # a tracker's SystemExit is its own end, too
            self._is_lost = True
            self._say(f"failed and is left out: {_one_line(err)}")

    def _say(self, what: str) -> None:
        if self._has_spoken.acquire(blocking=False):
            # in one write: print would let another thread's line in before its own end
            sys.stderr.write(f"tracker {self._name!r} {what}; the run is not affected\n")
            sys.stderr.flush()


def close(trackers: Sequence[Tracker], status: Status, patience: float) -> None:
    """End all of these trackers at once.

    Args:
        trackers: they are told nothing afterwards.
        status: how the run ended.
        patience: seconds for all of them together.
    """
    for tracker in trackers:
        tracker.ask_to_end(status)
    deadline = time.monotonic() + patience
    for tracker in trackers:
        tracker.wait(deadline - time.monotonic())


def _one_line(err: BaseException) -> str:
    """Return what an error says, with its cause where Hydra has wrapped it in where the config stood."""
    cause = err.__cause__ if type(err).__module__.startswith("hydra") and err.__cause__ else err
    return f"{type(cause).__name__}: {' '.join(str(cause).split())}"[:300]

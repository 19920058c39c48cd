"""Progress with an ETA: a bar on a terminal, plain lines in a file or a pipe.

Lightning is loaded by the callback alone: an evaluation shows progress without it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import ProgressBar

T = TypeVar("T")

PLAIN_INTERVAL_SECONDS = 10.0


def track(items: Iterable[T], description: str, *, total: int) -> Iterator[T]:
    """Yield the items of one long piece of work, showing how far it is and when it will end.

    Args:
        items: what is worked on, one by one.
        description: shown in front.
        total: their number.
    """
    if sys.stderr.isatty():
        columns = (
            TextColumn("{task.description:>12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("eta"), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=Console(stderr=True)) as bar:
            yield from bar.track(items, total=total, description=description)
        return
    clock = PlainClock(description, total)
    for item in items:
        yield item
        clock.advance()


def training_progress() -> ProgressBar:
    """Return the callback that suits where standard error goes."""
    from lightning.pytorch.callbacks import RichProgressBar

    from fsr_lab.callback.plain_progress import PlainProgress

    return RichProgressBar(leave=True) if sys.stderr.isatty() else PlainProgress()


class PlainClock:
    """A line with an ETA every few seconds, and one at the end; of `unit`s where it says what is counted."""

    def __init__(self, description: str, total: int, unit: str = "") -> None:
        self.description, self.total, self.unit = description, total, unit
        self.done = self.started_at = 0
        self.start = self.last = time.monotonic()

    def advance(self) -> None:
        """Count one more."""
        self.done += 1
        now = time.monotonic()
        if now - self.last < PLAIN_INTERVAL_SECONDS and self.done != self.total:
            return
        self.last = now
        elapsed = now - self.start
        eta = elapsed / (self.done - self.started_at) * (self.total - self.done)
        text = f"{self.description}: {self.unit} {self.done}/{self.total}".replace("  ", " ")
        print(f"{text}  {elapsed:.0f} s  eta {eta:.0f} s", file=sys.stderr, flush=True)

"""Progress with an ETA: a bar on a terminal, plain lines in a file or a pipe."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

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
    clock = _PlainClock(description, total)
    for item in items:
        yield item
        clock.advance()


class PlainProgress(ProgressBar):
    """One line every few seconds and one at each epoch's end, for training whose output goes to a file."""

    def __init__(self) -> None:
        super().__init__()
        self._is_silent = False

    def disable(self) -> None:
        """Stay silent: Lightning's word to all ranks but the first."""
        self._is_silent = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._clock = _PlainClock("train", int(trainer.estimated_stepping_batches), unit="step")
        self._clock.done = self._clock.started_at = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._is_silent:
            self._clock.advance()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_silent:
            return
        shown = ("train/loss", "train/acc", "val/acc", "val/robust_acc")
        values = {name: float(trainer.callback_metrics[name]) for name in shown if name in trainer.callback_metrics}
        text = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {text}", file=sys.stderr, flush=True)


def training_progress() -> ProgressBar:
    """Return the callback that suits where standard error goes."""
    return RichProgressBar(leave=True) if sys.stderr.isatty() else PlainProgress()


class _PlainClock:
    def __init__(self, description: str, total: int, unit: str = "") -> None:
        self.description, self.total, self.unit = description, total, unit
        self.done = self.started_at = 0
        self.start = self.last = time.monotonic()

    def advance(self) -> None:
        self.done += 1
        now = time.monotonic()
        if now - self.last < PLAIN_INTERVAL_SECONDS and self.done != self.total:
            return
        self.last = now
        elapsed = now - self.start
        eta = elapsed / (self.done - self.started_at) * (self.total - self.done)
        text = f"{self.description}: {self.unit} {self.done}/{self.total}".replace("  ", " ")
        print(f"{text}  {elapsed:.0f} s  eta {eta:.0f} s", file=sys.stderr, flush=True)

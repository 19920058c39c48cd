"""Ctrl-C and SIGTERM finish the step, write a checkpoint and stop; a second one stops at once."""

import signal
from pathlib import Path
from types import FrameType
from typing import Any

from lightning import Callback, LightningModule, Trainer

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class InterruptedRunError(RuntimeError):
    """The run was asked to stop, and left a checkpoint to continue from."""


class StopCleanly(Callback):
    """Saves between two steps, never inside one, when the process is asked to stop.

    Args:
        path: the checkpoint to write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._asked = ""
        self._previous: dict[signal.Signals, Any] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        try:
            self._previous = {number: signal.signal(number, self._ask) for number in SIGNALS}
        except ValueError:  # not in the main thread, where Python takes no handlers; the caller's then apply
            self._previous = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._asked:
            trainer.save_checkpoint(self.path)
            raise InterruptedRunError(f"{self._asked} at step {trainer.global_step}: the checkpoint is whole")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._release()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = signal.Signals(number).name
        self._release()

    def _release(self) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

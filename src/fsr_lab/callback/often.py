"""Checkpoints within an epoch, by steps or by minutes: what a SIGKILL can lose."""

import time
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer


class SaveOften(Callback):
    """Writes the last checkpoint after every so many steps, or as soon as so many minutes have passed since the last.

    Lightning's ModelCheckpoint would also save after an epoch's last step, before its validation: a run resumed from
    there has missed that validation, and may keep another best checkpoint. This one leaves that step to the epoch's
    end, which follows it.

    Args:
        path: the checkpoint to write.
        steps: optimiser steps between two; None for none by steps.
        minutes: between two, by the first clock of any rank to say so; None for none by the clock.

    Raises:
        ValueError: a number that is not above 0.
    """

    def __init__(self, path: str | Path, *, steps: int | None = None, minutes: float | None = None) -> None:
        for name, given in (("steps", steps), ("minutes", minutes)):
            if given is not None and not given > 0:
                raise ValueError(f"expected callback.often.{name} above 0, or null for none, got {given}")
        self.path, self.steps, self.minutes = Path(path), steps, minutes
        self._saved_at = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_last_batch:
            return
        is_due = self.steps is not None and trainer.global_step % self.steps == 0
        if self.minutes is not None:
            by_clock = time.monotonic() - self._saved_at >= 60 * self.minutes
            if trainer.world_size > 1:  # all ranks save or none; one number among them, at every step
                by_clock = trainer.strategy.reduce_boolean_decision(by_clock, all=False)
            is_due |= by_clock
        if is_due:
            trainer.save_checkpoint(self.path)
            self._saved_at = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_at = time.monotonic()  # the epoch's own checkpoint follows

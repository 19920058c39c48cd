"""Training's progress where its output goes to a file."""

import sys
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from fsr_lab.callback.progress import PlainClock


class PlainProgress(ProgressBar):
    """One line every few seconds and one at each epoch's end, for training whose output goes to a file."""

    def __init__(self) -> None:
        super().__init__()
        self._is_silent = False

    def disable(self) -> None:
        """Stay silent: Lightning's word to all ranks but the first."""
        self._is_silent = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._clock = PlainClock("train", int(trainer.estimated_stepping_batches), unit="step")
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

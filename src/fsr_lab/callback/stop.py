"""Ctrl-C, SIGTERM, SIGUSR1 and SIGUSR2 finish the step, write a checkpoint and stop; a second one stops at once."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from lightning import Callback, LightningModule, Trainer

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""SIGUSR1 and SIGUSR2 are what batch systems send some time before they end a job."""


class InterruptedRunError(RuntimeError):
    """The run was asked to stop, and left a checkpoint to continue from."""


class StopCleanly(Callback):
    """Saves between two steps, never inside one, when the process is asked to stop.

    Asked during an epoch's last step or its validation, it lets the epoch end first, so that the resumed run has
    seen every validation. With several ranks all stop when one is asked, and a second signal changes nothing: torchrun
    and batch systems send each rank several.

    A handler that a program round the training had set, as submitit does to queue a job again, is called once the
    checkpoint is written, and decides: where it returns, training goes on. A second signal changes nothing there.

    Args:
        path: the checkpoint to write.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._asked: list[signal.Signals] = []
        self._previous: dict[signal.Signals, Any] = {}
        self._round: dict[signal.Signals, Any] = {}
        self._is_one_of_several = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_one_of_several = trainer.world_size > 1
        self._round = {number: signal.getsignal(number) for number in SIGNALS}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # after Lightning has set its own handlers, which would take a SIGTERM too, and end an epoch by an exception
        self._listen()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_last_batch:
            self._stop_if_asked(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_if_asked(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._release()  # on_fit_end would be after Lightning has given its own handlers back

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if not self._is_one_of_several:  # a rank ends by it, and is to end in peace
            self._release()

    def _listen(self) -> None:
        try:
            self._previous = {number: signal.signal(number, self._ask) for number in SIGNALS}
        except ValueError:  # not in the main thread, where Python takes no handlers; the caller's then apply
            self._previous = {}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if number in self._asked:
            return
        asked = signal.Signals(number)
        self._asked.append(asked)
        if not self._is_one_of_several and self._who_decides(asked) is None:
            self._release()  # a second one stops at once
        print(f"{asked.name}: stopping after this step", file=sys.stderr, flush=True)

    def _stop_if_asked(self, trainer: Trainer) -> None:
        asked = bool(self._asked)
        if trainer.world_size > 1:
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if not asked:
            return
        trainer.save_checkpoint(self.path)
        deciders = {number: handler for number in self._asked if (handler := self._who_decides(number)) is not None}
        if self._asked and len(deciders) == len(self._asked):
            self._asked = []
            for number, decides in deciders.items():
                decides(number, None)
            return
        name = self._asked[0].name if self._asked else "another rank was stopped"
        raise InterruptedRunError(f"{name} at step {trainer.global_step}: the checkpoint is whole")

    def _who_decides(self, number: signal.Signals) -> Callable[[int, FrameType | None], object] | None:
        """Return the handler that a program round the training had set, if one had."""
        handler = self._round[number]
        return handler if callable(handler) and handler is not signal.default_int_handler else None

    def _release(self) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

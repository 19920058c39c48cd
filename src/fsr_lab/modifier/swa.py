"""Stochastic weight averaging."""

from collections.abc import Iterable, Iterator
from copy import copy
from itertools import islice
from typing import ClassVar, cast

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from fsr_lab.core.types import Defended, Progress
from fsr_lab.modifier.averaging import Averaged, Averaging
from fsr_lab.modifier.recalibration import recalibrate


class SWA(Averaging):
    """Running mean of the weights at the ends of the last epochs (Izmailov et al., UAI 2018, arXiv:1803.05407).

    After each of its epochs, before the epoch is validated, BatchNorm's statistics are estimated anew (see
    `recalibrate`) on training images of the coming epoch, crafted by the strategy against the average.
    Differs from the paper: adversarial images, and neither a constant nor a cyclic learning rate.

    Args:
        start_epoch: the first epoch that counts, itself counted from 1: 75 is the protocol's first learning-rate drop.
        bn_batches: on how many batches the statistics are estimated; 0 averages them as the weights.
        name: see `Averaging`.

    Raises:
        ValueError: a start before the first epoch or after the last, or a negative number of batches.
    """

    begins_untrained: ClassVar[bool] = False

    def __init__(self, *, start_epoch: int = 75, bn_batches: int = 50, name: str = "swa") -> None:
        super().__init__(name=name)
        if start_epoch < 1:
            raise ValueError(f"expected start_epoch of {name} of at least 1, the first epoch, got {start_epoch}")
        if bn_batches < 0:
            raise ValueError(f"expected bn_batches of {name} of at least 0, got {bn_batches}; 0 estimates nothing anew")
        self.start_epoch = start_epoch
        self.bn_batches = bn_batches

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        last = trainer.max_epochs
        if last is not None and 0 < last < self.start_epoch:
            raise ValueError(
                f"{self.name} would begin in epoch {self.start_epoch}, after the last, {last}, and average nothing; "
                f"give modifier.{self.name}.start_epoch={max(1, 3 * last // 4)}, or more epochs"
            )

    def decay_now(self, trainer: Trainer) -> float | None:
        """Return n / (n + 1) at the end of each epoch that counts."""
        if not trainer.is_last_batch or trainer.current_epoch + 1 < self.start_epoch:
            return None
        return self.updates / (self.updates + 1)

    def complete(self, trainer: Trainer, module: Averaged, average: nn.Module) -> None:
        """Estimate BatchNorm's statistics anew."""
        if self.bn_batches:
            recalibrate(average, self._adversarial(trainer, module, average))

    def _adversarial(self, trainer: Trainer, module: Averaged, average: nn.Module) -> Iterator[Tensor]:
        # a copy of the loader, with a place of its own: training goes on where it stands
        loader = cast(Iterable[tuple[Tensor, Tensor]], copy(trainer.train_dataloader))
        progress = Progress(trainer.current_epoch, trainer.max_epochs or 0, trainer.global_step)
        for x, y in islice(loader, self.bn_batches):
            yield module.strategy.craft(cast(Defended, average), x, y, progress).x_adv

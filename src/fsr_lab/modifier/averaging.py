"""Averages of the weights along training, kept beside them: EMA, SEAT's among them, and SWA."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from copy import copy, deepcopy
from itertools import chain, islice
from typing import Any, ClassVar, Protocol, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from fsr_lab.core.types import Defended, Progress, Strategy
from fsr_lab.modifier.recalibration import recalibrate

_PREFIX = "model."


class Averaged(Protocol):
    """What an averaging needs of the LightningModule: the network, and a place for its averages."""

    model: nn.Module
    strategy: Strategy
    averages: dict[str, nn.Module]


class Averaging(Callback, ABC):
    """Keeps an average of the network: a copy that checkpoints hold and, if it is the first, validation judges.

    best.ckpt is then the best epoch of the average. Until an average begins it is the online network itself.
    Parameters and floating-point buffers are averaged; other buffers are copied.

    Not Lightning's `WeightAveraging`: that averages all buffers of the LightningModule, whole numbers too, of a copy
    made with trainer and metrics; is the untrained network until it begins; copies at its first update instead of
    averaging; loses the epoch of its last update when resumed; and exchanges the weights around a validation and at
    the end, which an interrupt leaves exchanged. Each would have to be overridden. Here validation is handed the
    copy, and the online weights are never touched.

    Must stand before callbacks that save inside an epoch, or these would miss the step's update.

    Args:
        name: of the average, in checkpoints and tables.
    """

    begins_untrained: ClassVar[bool]
    """Whether the initial weights are part of the average, or the first update is its first member."""

    def __init__(self, *, name: str) -> None:
        self.name = name
        self.updates = 0
        self._step = 0
        self._stored: dict[str, Tensor] | None = None

    @abstractmethod
    def decay_now(self, trainer: Trainer) -> float | None:
        """Return what is left of the average at this step's update; None for no update."""

    def complete(self, trainer: Trainer, module: Averaged, average: nn.Module) -> None:
        """Do what is left to do after an update: nothing by default."""

    @property
    def state_key(self) -> str:
        return self._generate_state_key(name=self.name)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module = cast(Averaged, pl_module)
        module.averages[self.name] = module.model
        if self.begins_untrained or self.updates:
            average = self._copied(module)
            if self._stored is not None:
                average.load_state_dict({name.removeprefix(_PREFIX): value for name, value in self._stored.items()})
        self._stored = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:
            return  # gradients are being accumulated
        self._step = trainer.global_step
        decay = self.decay_now(trainer)
        if decay is None:
            return
        module = cast(Averaged, pl_module)
        average = self._copied(module)
        update(average, module.model, decay)
        self.updates += 1
        self.complete(trainer, module, average)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let all ranks judge rank 0's average, which is the one that is kept: BatchNorm's statistics differ."""
        module = cast(Averaged, pl_module)
        average = module.averages[self.name]
        if trainer.world_size > 1 and average is not module.model:
            for buffer in average.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.updates = state_dict["updates"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """File the average under `averages`; `state_dict` stays the online network, whose optimiser is beside it."""
        module = cast(Averaged, pl_module)
        average = module.averages[self.name]
        own = {_PREFIX + name: value for name, value in average.state_dict().items()}
        # the same mapping, not its values: modifiers may yet put the true weights into it
        state = checkpoint["state_dict"] if average is module.model else own
        checkpoint.setdefault("averages", {})[self.name] = state

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        averages = checkpoint.get("averages", {})
        if self.name not in averages:
            raise ValueError(
                f"this checkpoint holds no average {self.name!r}: continue it with the modifiers that it was begun with"
            )
        self._stored = averages[self.name]

    def _copied(self, module: Averaged) -> nn.Module:
        """Return the average, made a network of its own if it is not one yet; taps rebind to it."""
        average = module.averages[self.name]
        if average is module.model:
            average = module.averages[self.name] = deepcopy(module.model).requires_grad_(False).eval()
        return average


class EMA(Averaging):
    """Exponential moving average, after every optimiser step: theta_e <- d theta_e + (1 - d) theta.

    With `warm_up` it is the self-ensemble of SEAT (Wang and Wang, ICLR 2022, arXiv:2203.09678): d(t) = min(decay,
    (t + 1) / (t + 10)), t counting steps from 0, so that the untrained network is soon forgotten. The online network
    alone crafts, and takes the gradients.

    Args:
        decay: d, or what it rises to.
        warm_up: whether it rises.
        name: see `Averaging`.

    Raises:
        ValueError: a decay outside [0, 1).
    """

    begins_untrained: ClassVar[bool] = True

    def __init__(self, *, decay: float = 0.999, warm_up: bool = True, name: str = "ema") -> None:
        super().__init__(name=name)
        if not 0 <= decay < 1:
            raise ValueError(f"expected the decay of {name} in [0, 1), got {decay}; 0.995 to 0.9999 are usual")
        self.decay = decay
        self.warm_up = warm_up

    def decay_now(self, trainer: Trainer) -> float:
        """Return d(t)."""
        rising = (self.updates + 1) / (self.updates + 10)
        return min(self.decay, rising) if self.warm_up else self.decay


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


@torch.no_grad()
def update(average: nn.Module, online: nn.Module, decay: float) -> None:
    """Set average <- decay * average + (1 - decay) * online, in place; buffers of whole numbers are copied."""
    pairs = zip(
        chain(average.parameters(), average.buffers()), chain(online.parameters(), online.buffers()), strict=True
    )
    floating = []
    for mine, current in pairs:
        if mine.is_floating_point():
            floating.append((mine, current))
        else:
            mine.copy_(current)
    if floating:
        own, theirs = (list(tensors) for tensors in zip(*floating, strict=True))
        get_ema_multi_avg_fn(decay)(own, theirs, 0)

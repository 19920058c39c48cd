"""The template of weight averages: a copy of the network, updated along training and kept beside it."""

from abc import ABC, abstractmethod
from copy import deepcopy
from itertools import chain
from typing import Any, ClassVar, Protocol, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from fsr_lab.core.types import Strategy

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

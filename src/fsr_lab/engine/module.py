"""One batch's life in training, as a LightningModule."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics.classification import MulticlassAccuracy

from fsr_lab.core.crafting import judging
from fsr_lab.core.types import Attack, Defended, Modifier, Progress, StepOutput, Strategy

OptimizerBuilder = Callable[[Iterable[dict[str, Any]]], Optimizer]
SchedulerBuilder = Callable[..., LRScheduler]


class TrainingDivergedError(RuntimeError):
    """The loss stopped being a number; the last good checkpoint stands."""


class RobustClassifier(LightningModule):
    """Trains a defended model by a strategy; validates clean and attacked accuracy.

    Args:
        model: the network; the checkpoint's keys are its own under "model.".
        strategy: turns a batch into losses.
        val_attack: attacks the validation images.
        optimizer: builds the optimiser from parameters.
        scheduler: builds the schedule from the optimiser.
        scheduler_interval: "epoch", or "step": then the schedule is also told `total_steps`.
        modifiers: act around the optimiser step.
        num_classes: K, for the metrics.
        seed: every step draws from (seed, step, rank), so that a resume in mid-epoch is exact.
        decay_all: the optimiser's weight decay acts on all parameters, as in the released code; otherwise not on
            biases and BatchNorm's scales.

    Raises:
        ValueError: a defence needs what the strategy does not make.
    """

    diverged_at: Tensor

    def __init__(
        self,
        *,
        model: nn.Module,
        strategy: Strategy,
        val_attack: Attack,
        optimizer: OptimizerBuilder,
        scheduler: SchedulerBuilder | None,
        scheduler_interval: str = "epoch",
        modifiers: Sequence[Modifier] = (),
        num_classes: int,
        seed: int,
        decay_all: bool = True,
    ) -> None:
        super().__init__()
        if getattr(model, "needs_clean", False) and not strategy.needs_clean:
            raise ValueError(
                f"a defence's loss reads clean images, and {type(strategy).__name__} forwards none; "
                "train with trades, mart or alp, or let the defence read adversarial images alone"
            )
        self.model = model
        self.strategy = strategy
        self.val_attack = val_attack
        self.build_optimizer = optimizer
        self.build_scheduler = scheduler
        self.scheduler_interval = scheduler_interval
        self.decay_all = decay_all
        self.modifiers = tuple(modifiers)
        # averages of the network, by name, which callbacks put here; no submodules: nothing of them is trained
        self.averages: dict[str, nn.Module] = {}
        self.seed = seed
        self.train_acc = MulticlassAccuracy(num_classes, average="micro")
        self.val_acc = MulticlassAccuracy(num_classes, average="micro")
        self.val_robust_acc = MulticlassAccuracy(num_classes, average="micro")
        # the step at which the loss first was not finite; lives on the device, read at the logging interval
        self.register_buffer("diverged_at", torch.tensor(-1), persistent=False)
        self._position: dict[str, int] | None = None

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the batch's loss, weighted by this rank's share of the global batch."""
        x, y = batch
        torch.manual_seed(step_seed(self.seed, self.global_step, self.global_rank))
        share = self._share(batch_idx)
        progress = Progress(self.current_epoch, self.trainer.max_epochs or 0, self.global_step)
        out = self.training_output(x, y, progress, share)
        loss = total(out)
        self._flag(loss)
        self.train_acc.update(out.logits.detach(), y)
        values = {f"train/{name}": value.detach() for name, value in out.losses.items()}
        with self._profiled("logging"):
            self.log_dict(values | {"train/loss": loss.detach()}, batch_size=len(y))
            self.log("train/acc", self.train_acc, on_step=False, on_epoch=True)
        return loss * share

    def training_output(self, x: Tensor, y: Tensor, progress: Progress, share: float = 1.0) -> StepOutput:
        """Craft, let the modifiers act, and compute the losses: a step's work, but for the optimiser's.

        Args:
            x: (N, C, H, W) in [0, 1].
            y: (N,) int64.
            progress: where training stands.
            share: this rank's weight among all ranks.
        """
        model = cast(Defended, self.model)
        with self._profiled("crafting"):
            crafted = self.strategy.craft(model, x, y, progress)
        for modifier in self.modifiers:
            modifier.before_loss(self, lambda: total(self.strategy.losses(model, crafted)) * share, progress)
        return self.strategy.losses(model, crafted)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._restore()  # where gradients are accumulated, a batch ends without an optimiser step
        if self.global_step % max(self.trainer.log_every_n_steps, 1) == 0:  # type: ignore[attr-defined]
            self.stop_if_diverged()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember where in its epoch the checkpoint left the training batches."""
        loaders = checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader", [])
        self._position = loaders[0] if loaders else None

    def on_train_start(self) -> None:
        """Put the training batches back to that place.

        Lightning restores it only into a loader built after the checkpoint was read; asking for the number of
        steps, as a per-step schedule must, builds it before.
        """
        restore = getattr(self.trainer.train_dataloader, "load_state_dict", None)
        if self._position is not None and restore is not None:
            restore(self._position)
        self._position = None

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then let modifiers take back what they did to the weights, whatever happens in the step."""
        try:
            super().optimizer_step(*args, **kwargs)
        finally:
            self._restore()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Measure accuracy on clean and attacked images, both of the first average, or of the network without one."""
        x, y = batch
        model = next(iter(self.averages.values()), self.model)
        x_adv = self.val_attack(model, x, y)
        with judging(model) as deployed:
            self.val_acc.update(deployed(x), y)
            self.val_robust_acc.update(deployed(x_adv), y)
        self.log("val/acc", self.val_acc, on_step=False, on_epoch=True)
        self.log("val/robust_acc", self.val_robust_acc, on_step=False, on_epoch=True, prog_bar=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write the true weights, and refuse to write what is no number over good ones."""
        self.stop_if_diverged()
        for modifier in self.modifiers:
            checkpoint["state_dict"].update(modifier.true_weights())
        for state in (checkpoint["state_dict"], *checkpoint.get("averages", {}).values()):
            for name, value in state.items():
                if value.is_floating_point() and not value.isfinite().all():
                    raise TrainingDivergedError(self._diverged(f"{name} was not finite", self.global_step))

    def stop_if_diverged(self) -> None:
        """Raise if a loss since the last look was not finite.

        Raises:
            TrainingDivergedError: names the step.
        """
        step = int(self.diverged_at)
        if step >= 0:
            raise TrainingDivergedError(self._diverged("the loss was not finite", step))

    def configure_optimizers(self) -> Any:
        optimizer = self.build_optimizer(self.parameter_groups())
        if self.build_scheduler is None:
            return optimizer
        told = {}
        if self.scheduler_interval == "step":
            told = {"total_steps": int(self.trainer.estimated_stepping_batches)}
        schedule = {"scheduler": self.build_scheduler(optimizer, **told), "interval": self.scheduler_interval}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def _restore(self) -> None:
        for modifier in reversed(self.modifiers):
            modifier.after_optimizer_step(self)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the parameters as an optimiser takes them: those that decay, then those that do not, if there are."""
        parameters = list(self.model.parameters())
        if self.decay_all:
            return [{"params": parameters}]
        kept = [parameter for parameter in parameters if parameter.ndim < 2]
        decayed = [parameter for parameter in parameters if parameter.ndim >= 2]
        return [{"params": decayed}, {"params": kept, "weight_decay": 0.0}]

    def _diverged(self, what: str, step: int) -> str:
        return (
            f"{what} at step {step} (epoch {self.current_epoch}); the last good checkpoint stands: start again with "
            "a lower optim.lr, under another name= or with resume=never"
        )

    def _flag(self, loss: Tensor) -> None:
        bad = ~loss.detach().isfinite() & (self.diverged_at < 0)
        self.diverged_at = torch.where(bad, self.global_step, self.diverged_at)

    def _profiled(self, action: str) -> AbstractContextManager[None]:
        """Tell the trainer's profiler of a part of the step; benches run steps without a trainer."""
        return nullcontext() if self._trainer is None else self.trainer.profiler.profile(action)  # type: ignore[attr-defined]

    def _share(self, batch_idx: int) -> float:
        """Return this rank's weight under DDP's plain average; 1 in one process and for loaders that do not tell."""
        share = getattr(self.trainer.train_dataloader, "share", None)
        return 1.0 if share is None else float(share(batch_idx))


def total(out: StepOutput) -> Tensor:
    """Return a step's loss: the sum of its terms."""
    return torch.stack(list(out.losses.values())).sum()


def step_seed(seed: int, step: int, rank: int) -> int:
    """Return a 63-bit seed that differs between steps, ranks and runs in all of its bits."""
    digest = hashlib.sha256(f"train {seed} {step} {rank}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1

"""What trackers see of a training beside Lightning's numbers: FSR's masks, and the best robust accuracy so far."""

import sys
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from fsr_lab.core.crafting import judging
from fsr_lab.core.types import Defended
from fsr_lab.engine.exhibits import Histogram, shown
from fsr_lab.engine.module import RobustClassifier
from fsr_lab.engine.tracker import Tracker

BINS = 50


class Watch(Callback):
    """Shows trackers the masks on a few validation images after every epoch, and changes nothing about the run.

    Args:
        trackers: to show them.
        images: how many, from the first; 0 is none.
    """

    def __init__(self, trackers: Sequence[Tracker], images: int) -> None:
        self._trackers = trackers
        self._images = images

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx or not self._images or trainer.sanity_checking or not trainer.is_global_zero:
            return
        model = cast(Defended, cast(RobustClassifier, pl_module).model)
        try:
            found = mask_histograms(model, batch[0][: self._images])
        except Exception as err:  # whatever a defence makes of it, the run goes on
            self._images = 0
            print(f"no mask histograms: {type(err).__name__}: {err}", file=sys.stderr, flush=True)
            return
        for point, histogram in found.items():
            for tracker in self._trackers:
                tracker.tell(shown(f"mask/{point}", histogram, _last_step(trainer)))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell of the best validation so far; a resumed run knows it from its checkpoint."""
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.monitor and callback.best_model_score is not None:
                best = {f"{callback.monitor}_best": float(callback.best_model_score)}
                for tracker in self._trackers:
                    tracker.log_metrics(best, _last_step(trainer))


def mask_histograms(model: Defended, x: Tensor) -> dict[str, Histogram]:
    """Return, for every point whose defence makes a mask, how its values are spread on images, as deployed.

    The random state, the modes of the modules and the compiled graphs stay as they are.

    Args:
        model: in any mode.
        x: (N, C, H, W) in [0, 1].
    """
    devices = [x.device] if x.device.type != "cpu" else []
    with torch.random.fork_rng(devices=devices), judging(model), torch.compiler.set_stance("force_eager"):
        aux = model.forward_with_aux(x).aux
    masks = {point: tensors["mask"].float().cpu().numpy() for point, tensors in aux.items() if "mask" in tensors}
    return {
        point: Histogram(*np.histogram(mask, bins=BINS, range=(0.0, 1.0))) for point, mask in masks.items() if mask.size
    }


def _last_step(trainer: Trainer) -> int:
    """Return the step that an epoch's own metrics are logged at: its last one, counted from 0."""
    return max(trainer.global_step - 1, 0)

"""A real Trainer, killed at any step and resumed, sees the batches it would have seen."""

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn

from fsr_lab.dataset.resident import ResidentBatches

# Lightning 2.6 asks torch's tree library in a way that torch 2.15 announces to drop
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning")

COUNT, BATCH_SIZE, EPOCHS = 10, 4, 3
STEPS = 3  # in an epoch: batches of 4, 4 and 2


class Recorder(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(16, 2)
        self.seen = []

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.seen.append((self.current_epoch, batch_idx, y.tolist(), x.sum().item()))
        return self.layer(x.flatten(1)).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.layer(batch[0].flatten(1)).square().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class KilledError(Exception):
    pass


class KillAfter(Callback):
    """Saves at the end of a step, as a checkpoint callback does, and dies in the next."""

    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise KilledError


def batches(*, shuffle):
    images = torch.randint(256, (COUNT, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    augment = "pad_crop_flip" if shuffle else "none"
    arguments = {"batch_size": BATCH_SIZE, "seed": 0, "augment": augment, "device": "cpu", "shuffle": shuffle}
    return ResidentBatches(images=images, labels=torch.arange(COUNT), **arguments)


def trainer(folder, *callbacks, **options):
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
    }
    saving = {"enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks)}
    options = quiet | saving | {"max_epochs": EPOCHS, "use_distributed_sampler": False} | options
    return lightning.Trainer(default_root_dir=folder, callbacks=list(callbacks), **options)


def fit(running, **resume):
    module = Recorder()
    try:
        running.fit(module, batches(shuffle=True), batches(shuffle=False), **resume)
    except KilledError:
        module.killed = True
    return module


@pytest.fixture
def uninterrupted(tmp_path):
    module = fit(trainer(tmp_path))
    assert len(module.seen) == EPOCHS * STEPS
    assert len({tuple(y) for _, _, y, _ in module.seen}) == EPOCHS * STEPS
    return module


@pytest.mark.parametrize("step", range(1, EPOCHS * STEPS))
def test_a_run_killed_after_any_step_sees_the_same_batches(step, uninterrupted, tmp_path):
    path = tmp_path / "last.ckpt"
    killed = fit(trainer(tmp_path, KillAfter(step, path)))
    resumed = fit(trainer(tmp_path), ckpt_path=path)
    assert killed.killed
    assert killed.seen == uninterrupted.seen[:step]
    assert resumed.seen == uninterrupted.seen[step:]
    for ours, theirs in zip(resumed.parameters(), uninterrupted.parameters(), strict=True):
        assert torch.equal(ours, theirs)


STEPWISE = {"every_n_train_steps": 1}
AFTER_TRAINING = {"every_n_epochs": 1, "save_on_train_epoch_end": True}
AFTER_VALIDATION = {"every_n_epochs": 1, "save_on_train_epoch_end": False}


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize(
    ("often", "limits"),
    [
        *((often, {}) for often in (STEPWISE, AFTER_TRAINING, AFTER_VALIDATION)),
        *((often, {"limit_train_batches": 2}) for often in (STEPWISE, AFTER_TRAINING, AFTER_VALIDATION)),
        *((often, {"limit_val_batches": 0}) for often in (STEPWISE, AFTER_TRAINING)),
    ],
)
def test_every_checkpoint_that_lightning_writes_continues_exactly(often, limits, tmp_path):
    def saving(folder):
        return ModelCheckpoint(folder, filename="{step}", save_top_k=-1, **often)

    whole = fit(trainer(tmp_path, saving(tmp_path / "whole"), **limits))
    written = {int(path.stem.partition("=")[2]): path for path in (tmp_path / "whole").glob("*.ckpt")}
    steps = limits.get("limit_train_batches", STEPS)
    every = 1 if often is STEPWISE else steps
    assert sorted(written) == list(range(every, EPOCHS * steps + 1, every))
    for step, path in written.items():
        resumed = fit(trainer(tmp_path, saving(tmp_path / f"from_{step}"), **limits), ckpt_path=path)
        assert resumed.seen == whole.seen[step:], path.name
        for ours, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
            assert torch.equal(ours, theirs)


def test_epochs_shortened_by_the_trainer_are_new_epochs_each(tmp_path):
    seen = fit(trainer(tmp_path, limit_train_batches=2)).seen
    whole = fit(trainer(tmp_path)).seen
    assert seen == [batch for batch in whole if batch[1] < 2]

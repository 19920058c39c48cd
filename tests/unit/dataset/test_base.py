from pathlib import Path

import lightning
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fsr_lab.dataset.digits import Digits
from fsr_lab.dataset.toy import Toy

COMMON = {
    "source": None,
    "batch_size": 32,
    "eval_batch_size": 30,
    "split_seed": 0,
    "augment": "none",
    "seed": 0,
}


def toy(folder, **changes):
    own = {"train_size": 320, "test_size": 80, "contrast": 0.1, "noise": 0.1, "pattern_seed": 0}
    shape = {"name": "toy", "num_classes": 4, "image_shape": [3, 8, 8], "val_size": 32}
    return Toy(**(COMMON | own | shape | {"folder": folder} | changes))


def opened(data):
    data.prepare_data()
    data.setup()
    return data


@pytest.fixture
def data(tmp_path):
    return opened(toy(tmp_path))


def test_setup_twice_keeps_the_tensors(data):
    train = data.train
    data.setup("fit")
    data.setup("test")
    assert data.train is train


def test_loaders_show_each_part_once(data):
    for loader, part in (
        (data.train_dataloader(), data.train),
        (data.val_dataloader(), data.val),
        (data.test_dataloader(), data.test),
        (data.test_batches(), data.test),
    ):
        seen = torch.cat([y for _, y in loader])
        assert torch.equal(seen.sort().values, part.y.sort().values)


def test_evaluation_keeps_the_order_and_the_first_images(data):
    x = torch.cat([x for x, _ in data.test_batches()])
    assert torch.equal(x, data.test.x / 255)
    first = torch.cat([x for x, _ in data.test_batches(limit=7)])
    assert torch.equal(first, x[:7])
    assert [len(y) for _, y in data.test_batches(limit=1)] == [1]
    with pytest.raises(ValueError, match="limit of at least 1 image, got 0"):
        data.test_batches(limit=0)


def test_no_validation_images_when_none_are_wanted(tmp_path):
    data = opened(toy(tmp_path, val_size=0))
    assert data.val_dataloader() == []
    assert len(data.val.y) == 0
    assert len(data.train.y) == 320


def test_toy_is_learnt_in_a_few_steps(data):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):
        for x, y in data.train_dataloader():
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
    hits = torch.cat([net(x).argmax(1) == y for x, y in data.test_batches()])
    assert hits.float().mean() > 0.95


def test_digits_are_the_bundled_images_enlarged(tmp_path):
    shape = {"name": "digits", "num_classes": 10, "image_shape": (1, 8, 8), "val_size": 144}
    small = opened(Digits(**(COMMON | shape | {"folder": tmp_path / "8", "side": 8})))
    large = opened(Digits(**(COMMON | shape | {"image_shape": (1, 32, 32), "folder": tmp_path / "32", "side": 32})))
    assert len(small.train.y) + len(small.val.y) == 1437
    assert len(small.test.y) == 360
    levels = torch.arange(17) / 16 * 255
    assert torch.isin(small.test.x, levels.round().byte()).all()
    assert torch.equal(small.test.y, large.test.y)
    centres = ((torch.arange(32) + 0.5) / 4 - 0.5).clamp(0, 7)  # of the large pixels, counted in small ones
    weight = (1 - (centres[:, None] - torch.arange(8)).abs()).clamp(min=0)
    wanted = weight @ (small.test.x.float() / 255 * 16).round() / 16 * 255 @ weight.T
    assert (large.test.x - wanted).abs().max() <= 0.51


def test_a_trainer_says_where_batches_appear_and_who_shares_them(data):
    class Elsewhere:
        class strategy:  # noqa: N801  an attribute of the trainer
            root_device = torch.device("meta")

        global_rank, world_size = 1, 2

    data.trainer = Elsewhere()
    loader = data.train_dataloader()
    assert loader.images.device.type == "meta"
    assert (loader.rank, loader.world_size) == (1, 2)
    assert data.test_batches().images.device.type == "cpu"
    assert data.test_batches().world_size == 1
    Elsewhere.world_size = 17
    with pytest.raises(ValueError, match="batch_size of at least 34 for 17 ranks, got 32"):
        data.train_dataloader()


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning")
def test_lightning_takes_it_as_it_is(tmp_path):
    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch, batch_idx):
            self.log("val/loss", F.cross_entropy(self.net(batch[0]), batch[1]))

        def test_step(self, batch, batch_idx):
            self.log("test/acc", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = lightning.Trainer(
        logger=False, accelerator="cpu", default_root_dir=tmp_path, max_epochs=3, log_every_n_steps=1, **quiet
    )
    model, data = Model(), toy(tmp_path / "data")
    trainer.fit(model, data)
    assert trainer.global_step == 3 * len(data.train_dataloader())
    (result,) = trainer.test(model, data, verbose=False)
    assert result["test/acc"] > 0.9


def test_a_batch_is_not_moved(data):
    batch = next(iter(data.train_dataloader()))
    assert data.transfer_batch_to_device(batch, torch.device("meta"), 0) is batch


def test_text_is_its_arguments(data):
    assert str(data).startswith("Toy(name='toy', folder=")


def test_it_must_be_opened_first(tmp_path):
    data = toy(tmp_path)
    with pytest.raises(RuntimeError, match=r"dataset toy is not open; call prepare_data\(\) and setup\(\) first"):
        data.train_dataloader()
    with pytest.raises(FileNotFoundError, match="run: fsr prepare dataset=toy"):
        data.setup()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"batch_size": 1},
            "batch_size of at least 2, got 1: BatchNorm cannot normalise a training batch of one",
        ),
        ({"eval_batch_size": 0}, "eval_batch_size of at least 1, got 0"),
        ({"augment": "flip_pad"}, "no augmentation named 'flip_pad'"),
        ({"image_shape": [8, 8]}, r"image_shape \(channels, height, width\), got \(8, 8\)"),
    ],
)
def test_values_that_cannot_work_are_refused_at_once(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        toy(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"image_shape": [3, 9, 9]},
            r"toy.pt was prepared with image_shape=\[3, 8, 8\] instead of \[3, 9, 9\]; correct the config",
        ),
        (
            {"num_classes": 5},
            "toy.pt was prepared with num_classes=4 instead of 5; correct the config",
        ),
        ({"noise": 0.2, "train_size": 60}, "prepared with train_size=320 instead of 60, noise=0.1 instead of 0.2"),
        ({"val_size": 3}, "at least one image of each of 4 classes, got 3"),
        ({"val_size": 320}, "val_size of at most 316 of 320, got 320"),
    ],
)
def test_values_that_do_not_fit_the_data_are_refused(changes, message, data):
    with pytest.raises(ValueError, match=message) as caught:
        opened(toy(data.folder, **changes))
    assert "\n" not in str(caught.value)


def test_an_argument_that_does_not_exist_or_is_missing_is_refused(tmp_path):
    with pytest.raises(TypeError, match="unexpected keyword argument 'batchsize'"):
        toy(tmp_path, batchsize=3)
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'name'"):
        Digits(**COMMON, folder=Path("x"), num_classes=10, image_shape=(1, 8, 8), val_size=0, side=8)

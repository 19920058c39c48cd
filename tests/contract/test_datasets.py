"""What every dataset of conf/dataset keeps, whoever wrote it: the folder is the list."""

import io
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf" / "dataset"
REAL = ROOT.parent / "shared" / "data"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))


def official_cifar10(path):
    """Write an archive in the official layout from random images: 6 batches of 40."""
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w:gz") as tar:
        for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
            data = rng.integers(256, size=(40, 3072), dtype=np.uint8)
            content = pickle.dumps({"data": data, "labels": [row % 10 for row in range(40)]}, protocol=2)
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


SMALL = {"cifar10": (official_cifar10, {"verify": False, "val_size": 50, "batch_size": 32})}


def unpacked(name, folder):
    """Unpack a real set that lies beside the checkout, or skip."""
    if not (REAL / "unpack.py").exists():
        pytest.skip(f"the real images are not here: no {REAL}")
    subprocess.run([sys.executable, REAL / "unpack.py", "--out", folder, name], check=True, timeout=120)
    return folder / f"{name}.npz"


@pytest.fixture(scope="module", params=[*NAMES, pytest.param("cifar10-real", marks=pytest.mark.slow)])
def make(request, tmp_path_factory):
    """Return a function that gives the opened dataset, with changes."""
    folder = tmp_path_factory.mktemp(request.param)
    name, _, real = request.param.partition("-")
    fixed = {}
    if real:
        fixed = {"source": unpacked(name, folder)}
    elif name in SMALL:
        write, fixed = SMALL[name]
        fixed = fixed | {"source": write(folder / "archive.tar.gz")}

    def opened(seed=0, **changes):
        surroundings = {
            "seed": seed,
            "paths": {"data": str(folder)},
            "dataset": OmegaConf.load(CONF / f"{name}.yaml"),
        }
        config = OmegaConf.create(surroundings).dataset
        config.merge_with({key: str(value) if key == "source" else value for key, value in fixed.items()})
        config.merge_with(changes)
        arguments = OmegaConf.to_container(config, resolve=True)
        recipe = arguments.pop("recipe")
        assert set(recipe) == {"eps", "lr", "train_relative_step", "augment"}
        data = instantiate(arguments)
        data.prepare_data()
        data.setup()
        return data

    return opened


def passes(loader, count=1):
    """Return the batches of some passes, images and labels joined for each pass."""
    return [tuple(map(torch.cat, zip(*list(loader), strict=True))) for _ in range(count)]


def test_images_and_labels_are_what_they_should_be(make):
    data = make()
    channels, height, width = data.image_shape
    for part in (data.train, data.val, data.test):
        assert part.x.dtype == torch.uint8
        assert part.x.shape == (len(part.y), channels, height, width)
        assert part.y.dtype == part.ids.dtype == torch.int64
        assert set(part.y.tolist()) == set(range(data.num_classes))
    for loader in (
        data.train_dataloader(),
        data.val_dataloader(),
        data.test_dataloader(),
        data.test_batches(),
    ):
        x, y = next(iter(loader))
        assert x.dtype == torch.float32
        assert x.shape[1:] == (channels, height, width)
        assert 0 <= x.min() < x.max() <= 1
        assert y.dtype == torch.int64


def test_parts_are_disjoint_whole_and_stable(make):
    first, second = make(), make(seed=1)
    train, val = first.train.ids, first.val.ids
    assert not set(train.tolist()) & set(val.tolist())
    assert sorted(train.tolist() + val.tolist()) == list(range(len(train) + len(val)))
    assert len(val) == first.val_size
    for name in ("train", "val", "test"):
        for ours, theirs in zip(getattr(first, name), getattr(second, name), strict=True):
            assert torch.equal(ours, theirs)
    assert first.data_hash == second.data_hash


def test_another_split_seed_holds_out_other_images(make):
    assert not torch.equal(make().val.ids, make(split_seed=1).val.ids)


def test_validation_has_the_proportions_of_training(make):
    data = make()
    whole = torch.bincount(torch.cat([data.train.y, data.val.y]), minlength=data.num_classes)
    held_out = torch.bincount(data.val.y, minlength=data.num_classes)
    assert (held_out - data.val_size * whole / whole.sum()).abs().max() <= 1


def test_training_leaves_the_test_part_as_it_is(make):
    data = make(augment="pad_crop_flip")
    before = [tensor.clone() for tensor in data.test]
    passes(data.train_dataloader())
    assert all(torch.equal(tensor, kept) for tensor, kept in zip(data.test, before, strict=True))
    x, y = passes(data.test_batches())[0]
    assert torch.equal((x * 255).round().byte(), data.test.x)
    assert torch.equal(y, data.test.y)


def test_epochs_differ_and_a_seed_repeats_them(make):
    first, again, other = (passes(make(seed=seed).train_dataloader(), count=2) for seed in (0, 0, 1))
    assert not torch.equal(first[0][0], first[1][0])
    assert not torch.equal(first[0][0], other[0][0])
    for (x, y), (same_x, same_y) in zip(first, again, strict=True):
        assert torch.equal(x, same_x)
        assert torch.equal(y, same_y)


@pytest.mark.parametrize("augment", ["none", "pad_crop_flip"])
def test_augmentation_keeps_range_and_shape(augment, make):
    data = make(augment=augment)
    x, y = passes(data.train_dataloader())[0]
    assert x.shape == data.train.x.shape
    assert 0 <= x.min() < x.max() <= 1
    assert torch.equal(y.sort().values, data.train.y.sort().values)

"""What every dataset of conf/dataset keeps, whoever wrote it: the folder is the list."""

from pathlib import Path

import pytest
import torch
from archives import cifar10_files, cifar100_files, drawn, pictures, svhn, tar, tiny_imagenet_files, unpacked, zipped
from hydra.utils import instantiate
from omegaconf import OmegaConf
from worked_examples import shown

from fsr_lab.core.threat import Threat
from fsr_lab.engine.build import build_strategy, build_threat

CONF = Path(__file__).parents[2] / "conf" / "dataset"
NAMES = sorted([path.stem for path in CONF.glob("*.yaml")] + shown("dataset"))
WNIDS = [f"n{number:08}" for number in range(200)]

SMALL = {
    "cifar10": (
        lambda folder: tar(folder / "archive.tar.gz", cifar10_files(drawn(10, 32, train=20, test=4))),
        {"verify": False, "val_size": 50, "batch_size": 32},
    ),
    "cifar100": (
        lambda folder: tar(folder / "archive.tar.gz", cifar100_files(drawn(100, 32))),
        {"verify": False, "val_size": 100},
    ),
    "svhn": (
        lambda folder: svhn(folder / "official", drawn(10, 32, train=20, test=4)),
        {"verify": False, "val_size": 50, "batch_size": 32},
    ),
    "tiny_imagenet": (
        lambda folder: zipped(folder / "archive.zip", tiny_imagenet_files(drawn(200, 64, train=3), WNIDS)),
        {"verify": False, "val_size": 200},
    ),
    "image_folder": (
        lambda folder: pictures(folder / "pictures", *list(drawn(10, 32, train=12).values())[:2]),
        {"batch_size": 32},
    ),
}
"""What is not made here or bundled is read from a small archive of random images in the official layout."""


@pytest.fixture(scope="module", params=[*NAMES, pytest.param("cifar10-real", marks=pytest.mark.slow)])
def make(request, tmp_path_factory, option_file):
    """Return a function that gives the opened dataset, with changes."""
    folder = tmp_path_factory.mktemp(request.param)
    name, _, real = request.param.partition("-")
    fixed = {}
    if real:
        fixed = {"source": unpacked(name, folder)}
    elif name in SMALL:
        write, fixed = SMALL[name]
        fixed = fixed | {"source": write(folder)}

    def opened(seed=0, **changes):
        surroundings = {
            "seed": seed,
            "paths": {"data": str(folder)},
            "dataset": OmegaConf.load(option_file("dataset", name)),
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


def test_svhn_alone_is_the_papers_recipe(compose_config):
    cfg = compose_config("dataset=svhn")
    attack = build_strategy(cfg).attack
    assert build_threat(cfg) == attack.threat == Threat(norm="linf", eps=8 / 255)
    assert (attack.steps, attack.relative_step, attack.random_start) == (10, 0.125, True)
    optimizer = instantiate(cfg.optim.optimizer)(torch.nn.Linear(1, 1).parameters())
    assert optimizer.param_groups[0]["lr"] == 0.01
    assert (cfg.dataset.augment, cfg.dataset.extra) == ("none", False)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "tiny_imagenet"])
def test_the_other_sets_of_the_paper_share_a_recipe(name, compose_config):
    cfg = compose_config(f"dataset={name}")
    assert build_threat(cfg) == Threat(norm="linf", eps=8 / 255)
    assert build_strategy(cfg).attack.relative_step == 0.25
    assert (cfg.optim.lr, cfg.dataset.augment, cfg.dataset.batch_size) == (0.1, "pad_crop_flip", 128)


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

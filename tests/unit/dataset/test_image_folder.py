"""Folders of real pictures, in the forms in which users have them."""

import numpy as np
import pytest
from archives import encoded, extracted, pictures, real
from PIL import Image

from fsr_lab.dataset import pictures as decoding
from fsr_lab.dataset.image_folder import ImageFolder


@pytest.fixture(scope="module")
def some():
    """Thirty real pictures of three classes."""
    images = real("svhn_small")
    ids = np.concatenate([np.flatnonzero(images["y_train"] == label)[:10] for label in range(3)])
    return images["x_train"][ids], images["y_train"][ids]


@pytest.fixture(scope="module")
def drawn():
    """Thirty random pictures of three classes."""
    return np.random.default_rng(0).integers(256, size=(30, 32, 32, 3), dtype=np.uint8), np.arange(30) // 10


def dataset(folder, source, **changes):
    sizes = {"batch_size": 16, "eval_batch_size": 16, "val_size": 3, "split_seed": 0}
    about = {"name": "image_folder", "num_classes": 3, "image_shape": (3, 32, 32), "augment": "none", "seed": 0}
    own = {"side": 32, "resize": False, "test_fraction": 0.2, "test_seed": 0}
    return ImageFolder(folder=folder, source=source, **(sizes | about | own | changes))


@pytest.mark.parametrize("test", ["test", "val"])
def test_train_and_test_folders_are_the_parts(test, some, tmp_path):
    x, y = some
    pictures(tmp_path / "mine" / "train", x[::2], y[::2])
    pictures(tmp_path / "mine" / test, x[1::2], y[1::2], kind="BMP")
    (tmp_path / "mine" / "train" / "c0" / "Thumbs.db").write_bytes(b"of another program")
    (tmp_path / "mine" / "train" / "c0" / "._hidden.png").write_bytes(b"of another system")
    data = dataset(tmp_path / "data", tmp_path / "mine")
    data.prepare_data()
    data.setup()
    assert np.array_equal(data.test.x.permute(0, 2, 3, 1).numpy(), x[1::2])
    assert np.array_equal(data.test.y.numpy(), y[1::2])
    assert np.array_equal(data.train.x.permute(0, 2, 3, 1).numpy(), x[::2][data.train.ids])


def test_one_folder_is_divided_by_a_fixed_seed(some, tmp_path):
    source = pictures(tmp_path / "mine", *some)
    arrays, again, other = (
        dataset(tmp_path, source, **changes).build_arrays() for changes in ({}, {"seed": 1}, {"test_seed": 1})
    )
    assert np.bincount(arrays.y_test).tolist() == [2, 2, 2]
    assert np.bincount(arrays.y_train).tolist() == [8, 8, 8]
    assert np.array_equal(arrays.x_test, again.x_test)
    assert not np.array_equal(arrays.x_test, other.x_test)
    found = np.concatenate([arrays.x_train, arrays.x_test]).transpose(0, 2, 3, 1)
    assert {image.tobytes() for image in found} == {image.tobytes() for image in some[0]}


def test_classes_are_numbered_by_the_sorted_names_and_pictures_may_lie_deeper(drawn, tmp_path):
    x, _ = drawn
    names = ["b/deeper/1.png", "b/2.png", "a/1.PNG", "a/2.webp", "c/1.tiff", "c/2.gif"]
    kinds = ["PNG", "PNG", "PNG", "PNG", "TIFF", "PNG"]
    extracted(
        tmp_path / "mine", {name: encoded(image, kind) for name, image, kind in zip(names, x, kinds, strict=False)}
    )
    arrays = dataset(tmp_path, tmp_path / "mine", test_fraction=0.5).build_arrays()
    both = {image.tobytes(): label for image, label in zip(
        np.concatenate([arrays.x_train, arrays.x_test]).transpose(0, 2, 3, 1),
        np.concatenate([arrays.y_train, arrays.y_test]), strict=True,
    )}  # fmt: skip
    assert [both[image.tobytes()] for image in x[:6]] == [1, 1, 0, 0, 2, 2]


def test_an_npz_will_do(drawn, tmp_path):
    x, y = drawn
    np.savez(tmp_path / "mine.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    assert dataset(tmp_path / "data", tmp_path / "mine.npz").prepare().exists()


def test_pictures_of_another_size_are_refused_or_resized(tmp_path):
    left, right = np.zeros((20, 30, 3), np.uint8), np.full((20, 30, 3), 200, np.uint8)
    wide = np.concatenate([left, right], axis=1)  # 60 wide, 20 high
    source = extracted(
        tmp_path / "mine", {f"{name}/{number}.png": encoded(wide, "PNG") for name in "abc" for number in "12"}
    )
    said = "expected 32x32 pixels, got 60x20; set dataset.side to the size of all pictures, or dataset.resize=true"
    with pytest.raises(ValueError, match=rf"1.png: {said}") as caught:
        dataset(tmp_path / "data", source).prepare()
    assert "\n" not in str(caught.value)
    x = dataset(tmp_path, source, resize=True, test_fraction=0.5).build_arrays().x_train[0]
    assert x.shape == (3, 32, 32)
    assert (x[:, :, :12] < 30).all()  # the middle third is kept, where both halves meet
    assert (x[:, :, 20:] > 170).all()


def test_a_grey_set_has_one_channel(drawn, tmp_path):
    source = pictures(tmp_path / "mine", *drawn)
    arrays = dataset(tmp_path, source, image_shape=(1, 32, 32)).build_arrays()
    assert arrays.x_train.shape == (24, 1, 32, 32)
    with pytest.raises(ValueError, match="image_shape of 1 or 3 channels, got 4"):
        dataset(tmp_path, source, image_shape=(4, 32, 32)).build_arrays()


def test_a_photograph_is_turned_as_its_camera_was(tmp_path):
    upright = np.zeros((32, 32, 3), np.uint8)
    upright[:16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side: to be shown, the stored picture is turned clockwise
    path = tmp_path / "a.png"
    Image.fromarray(np.rot90(upright)).save(path, exif=exif)
    assert np.array_equal(decoding.decode(path, "a", (3, 32, 32), resize=False, cure=""), upright.transpose(2, 0, 1))


@pytest.mark.parametrize("part", ["mine", "test"])
def test_what_is_in_no_class_or_an_unknown_one_is_refused(part, drawn, tmp_path):
    x, y = drawn
    if part == "mine":
        source = pictures(tmp_path / "mine", x, y)
        (source / "c2x").mkdir()
        with pytest.raises(
            ValueError, match=r"expected 3 folders of classes, got 4; set dataset.num_classes=4 if that"
        ):
            dataset(tmp_path / "data", source).prepare()
        with pytest.raises(ValueError, match="c2x: expected pictures of this class, got none"):
            dataset(tmp_path / "data", source, num_classes=4).prepare()
    else:
        pictures(tmp_path / "mine" / "train", x, y)
        pictures(tmp_path / "mine" / "test", x, np.where(y == 2, 20, y))
        with pytest.raises(ValueError, match=r"test: no training class named 'c20'; close names: \['c2'"):
            dataset(tmp_path / "data", tmp_path / "mine").prepare()


def test_classes_too_small_to_divide_are_refused(drawn, tmp_path):
    x, y = drawn
    source = pictures(tmp_path / "mine", x[[0, 1, 10, 11, 20]], y[[0, 1, 10, 11, 20]])
    with pytest.raises(ValueError, match="at least two pictures of each class to set 3 of 5 aside for testing"):
        dataset(tmp_path / "data", source).prepare()
    with pytest.raises(ValueError, match="test_fraction between 0 and 1, got 1"):
        dataset(tmp_path / "data", source, test_fraction=1.0).prepare()


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"<html>"])
def test_a_damaged_picture_is_named_and_leaves_nothing(damage, drawn, tmp_path):
    source = pictures(tmp_path / "mine", *drawn)
    path = source / "c1" / "00012.png"
    path.write_bytes(damage(path.read_bytes()))
    data = dataset(tmp_path / "data", source)
    with pytest.raises(
        ValueError, match=r"c1/00012.png is damaged: expected a picture, got .*; replace or remove it"
    ) as caught:
        data.prepare()
    assert "\n" not in str(caught.value)
    assert [path.name for path in data.folder.iterdir() if path.suffix != ".lock"] == []


def test_a_picture_that_is_a_bomb_is_not_decoded(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.new("1", (300, 300)).save(path)
    monkeypatch.setattr(decoding, "MAX_PIXELS", 80_000)
    monkeypatch.setattr(Image.Image, "load", None)  # to decode would be to call it
    with pytest.raises(ValueError, match=r"a: expected at most 80000 pixels, got \(300, 300\); remove it"):
        decoding.decode(path, "a", (3, 32, 32), resize=True, cure="")


def test_sources_that_cannot_be_are_named(drawn, tmp_path):
    with pytest.raises(ValueError, match=r"image_folder has no source of its own; give dataset.source=FOLDER"):
        dataset(tmp_path / "data", None).prepare()
    with pytest.raises(FileNotFoundError, match=r"gone is not a folder; give dataset.source=FOLDER"):
        dataset(tmp_path / "data", tmp_path / "gone").prepare()
    pictures(tmp_path / "mine" / "train", *drawn)
    with pytest.raises(FileNotFoundError, match="mine has a train and neither a test nor a val folder"):
        dataset(tmp_path / "data", tmp_path / "mine").prepare()


def test_another_folder_is_another_set(drawn, tmp_path):
    dataset(tmp_path / "data", pictures(tmp_path / "one", *drawn)).prepare()
    with pytest.raises(ValueError, match=r"was prepared with source=.*one instead of .*two; .*dataset.folder=DIR"):
        dataset(tmp_path / "data", pictures(tmp_path / "two", *drawn)).prepare()
    dataset(tmp_path / "data", None).prepare()  # what was prepared needs its source no more

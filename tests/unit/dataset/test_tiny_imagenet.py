"""The official layout, written here from real images: compressed once more, so they come back almost the same."""

import json

import numpy as np
import pytest
from archives import REAL, encoded, extracted, real, tiny_imagenet_files, zipped
from PIL import Image

from fsr_lab.dataset import download as module
from fsr_lab.dataset.tiny_imagenet import MD5, URL, TinyImageNet

CLASSES = 4
BASE = "tiny-imagenet-200"


@pytest.fixture(scope="module")
def images():
    """Four training and two test images of each of four classes that do not lie at the start."""
    found = real("tiny_imagenet_small")
    chosen = {}
    for part, count in (("train", 4), ("test", 2)):
        y = found[f"y_{part}"]
        ids = np.concatenate([np.flatnonzero(y == 50 + label)[:count] for label in range(CLASSES)])
        np.random.default_rng(0).shuffle(ids)
        chosen |= {f"x_{part}": found[f"x_{part}"][ids], f"y_{part}": y[ids] - 50}
    return chosen


@pytest.fixture(scope="module")
def wnids(images):
    return sorted(json.loads((REAL / "tiny_imagenet_wnids.json").read_text())["wnids"])[50 : 50 + CLASSES]


@pytest.fixture
def files(images, wnids):
    return tiny_imagenet_files(images, wnids)


def dataset(folder, source, *, verify=False, **changes):
    sizes = {"batch_size": 16, "eval_batch_size": 16, "val_size": 4, "split_seed": 0, "mirrors": ["https://mirror"]}
    about = {"name": "tiny_imagenet", "num_classes": CLASSES, "image_shape": (3, 64, 64), "augment": "none", "seed": 0}
    return TinyImageNet(folder=folder, source=source, verify=verify, **(sizes | about | changes))


def test_the_validation_folder_is_the_test_part_with_the_annotated_labels(images, files, tmp_path):
    sources = (zipped(tmp_path / "tiny.zip", files), extracted(tmp_path / "parent", files), tmp_path / "parent" / BASE)
    hashes = set()
    for place, source in enumerate(sources):
        data = dataset(tmp_path / str(place), source)
        data.prepare_data()
        data.setup()
        hashes.add(data.data_hash)
        assert np.array_equal(data.test.y.numpy(), images["y_test"])
        x = data.test.x.permute(0, 2, 3, 1).numpy().astype(float)
        own = np.abs(x - images["x_test"]).mean((1, 2, 3))
        other = np.abs(x - images["x_test"][::-1]).mean((1, 2, 3))
        assert own.max() < 6 < other.min()  # grey levels lost to compression, and between different pictures
    assert len(hashes) == 1


def test_training_images_are_ordered_by_class_and_number(images, files, tmp_path):
    files = {f"{BASE}/train/nx/images/nx_0.JPEG": b"not of this layout"} | files
    arrays = dataset(tmp_path / "data", zipped(tmp_path / "tiny.zip", files)).build_arrays()
    assert arrays.y_train.tolist() == [label for label in range(CLASSES) for _ in range(4)]
    order = np.argsort(images["y_train"], kind="stable")
    difference = arrays.x_train.transpose(0, 2, 3, 1).astype(float) - images["x_train"][order]
    assert np.abs(difference).mean((1, 2, 3)).max() < 6


def test_ten_comes_after_nine(tmp_path):
    several = {}
    several["x_train"] = np.stack([np.full((64, 64, 3), 20 * number, np.uint8) for number in range(12)])
    several["x_test"], several["y_train"], several["y_test"] = several["x_train"], np.zeros(12, int), np.zeros(12, int)
    arrays = dataset(
        tmp_path,
        zipped(tmp_path / "tiny.zip", tiny_imagenet_files(several, [f"n{number}" for number in range(CLASSES)])),
    ).build_arrays()
    for x in (arrays.x_train, arrays.x_test):
        assert (np.diff(x[:, 0, 0, 0].astype(int)) > 0).all()


def test_a_grey_picture_becomes_three_equal_channels(files, tmp_path, wnids):
    name = f"{BASE}/train/{wnids[0]}/images/{wnids[0]}_0.JPEG"
    path = tmp_path / "grey.jpeg"
    Image.linear_gradient("L").resize((64, 64)).save(path, "JPEG")
    arrays = dataset(tmp_path, zipped(tmp_path / "tiny.zip", files | {name: path.read_bytes()})).build_arrays()
    red, green, blue = arrays.x_train[0]
    assert np.array_equal(red, green)
    assert np.array_equal(red, blue)
    assert red.min() < 5 < 250 < red.max()


def test_without_anything_the_official_source_is_asked_then_the_mirrors(tmp_path, files, monkeypatch):
    def download(urls, target, *, md5, offline):
        assert urls == [URL, "https://mirror/tiny-imagenet-200.zip"]
        assert (target.name, md5) == ("tiny-imagenet-200.zip", MD5)
        zipped(target, files)
        return urls[0]

    monkeypatch.setattr(module, "download", download)
    assert dataset(tmp_path, None).build_arrays().source == URL


def test_anything_but_the_true_set_is_refused_unless_told_otherwise(tmp_path, files, images):
    path = zipped(tmp_path / "tiny.zip", files)
    with pytest.raises(ValueError, match=r"tiny.zip is not Tiny ImageNet: expected md5 90528d7c.*verify=false"):
        dataset(tmp_path / "data", path, verify=True).prepare()
    np.savez(tmp_path / "tiny.npz", **images)
    for source in (tmp_path / "tiny.npz", extracted(tmp_path / "folder", files)):
        with pytest.raises(ValueError, match=r"official set's 500 training images of class 0, got 4; .*verify=false"):
            dataset(tmp_path / "data", source, verify=True).prepare()
    assert dataset(tmp_path / "data", tmp_path / "tiny.npz").build_arrays().x_train.shape == (16, 64, 64, 3)


ANNOTATIONS, WNIDS, PICTURE = f"{BASE}/val/val_annotations.txt", f"{BASE}/wnids.txt", f"{BASE}/val/images/val_3.JPEG"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            ANNOTATIONS,
            lambda text: text[: text.index(b"val_5")],
            "expected a label of val_5.JPEG in val/val_annotations.txt",
        ),
        (
            ANNOTATIONS,
            lambda text: text + b"val_99.JPEG\t" + text.split()[1],
            "a picture for each of 9 labels .*, got 8",
        ),
        (ANNOTATIONS, lambda text: text.replace(text.split()[1], b"n999"), "expected classes of wnids.txt, got 'n999'"),
        (
            ANNOTATIONS,
            lambda text: b"val_0.JPEG\n" + text,
            "a picture and its wnid in line 1 of val/val_annotations.txt",
        ),
        (ANNOTATIONS, lambda text: b"\xff\xfe" + text, "is damaged: expected text in val/val_annotations.txt"),
        (ANNOTATIONS, None, "lacks tiny-imagenet-200/val/val_annotations.txt; give dataset.source="),
        (WNIDS, None, "lacks tiny-imagenet-200/wnids.txt; give dataset.source="),
        (WNIDS, lambda text: text.split()[0], "expected 4 classes in wnids.txt, got 1"),
        (PICTURE, lambda data: data[: len(data) // 2], r"val_3.JPEG of .* is damaged: expected a picture"),
        (PICTURE, lambda data: b"", r"val_3.JPEG of .* is damaged: expected a picture"),
        (PICTURE, lambda data: encoded(np.zeros((64, 32, 3), np.uint8)), "expected 64x64 pixels, got 32x64; give"),
        (PICTURE, lambda data: bytes(9 << 20), "val_3.JPEG to have at most 8388608 bytes, got 9437184"),
        (PICTURE, None, "a picture for each of 8 labels .*, got 7"),
    ],
)
def test_a_damaged_archive_is_refused_in_one_line_and_leaves_nothing(name, change, message, files, tmp_path):
    damaged = dict(files)
    data = damaged.pop(name)
    if change is not None:
        damaged[name] = change(data)
    data = dataset(tmp_path / "data", zipped(tmp_path / "tiny.zip", damaged))
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        data.prepare()
    assert "\n" not in str(caught.value)
    assert [path.name for path in data.folder.iterdir() if path.suffix != ".lock"] == []


def test_a_class_without_pictures_is_named(files, wnids, tmp_path):
    kept = {name: data for name, data in files.items() if f"train/{wnids[2]}/" not in name}
    with pytest.raises(ValueError, match="training images of all 4 classes, got none of 2"):
        dataset(tmp_path / "data", zipped(tmp_path / "tiny.zip", kept)).prepare()


@pytest.mark.parametrize("damage", ["half", "flipped", "leads out"])
def test_a_damaged_zip_is_refused(damage, files, tmp_path):
    path = zipped(tmp_path / "tiny.zip", files | ({"../evil": b"x"} if damage == "leads out" else {}))
    data = bytearray(path.read_bytes())
    if damage == "half":
        data = data[: len(data) // 2]
    elif damage == "flipped":
        data[len(data) // 2] ^= 255
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"tiny.zip( is damaged: expected|: holds a path that leads out)") as caught:
        dataset(tmp_path / "data", path).prepare()
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "evil").exists()

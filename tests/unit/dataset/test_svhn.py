"""The official .mat files, written here from real crops."""

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from archives import drawn, real, svhn
from scipy.io import savemat
from torchvision import datasets as official

from fsr_lab.dataset import download as module
from fsr_lab.dataset import svhn as reader
from fsr_lab.dataset.svhn import SVHN, TEST_COUNTS, TRAIN_COUNTS, read_mat


@pytest.fixture(scope="module")
def crops():
    images = real("svhn_small")
    return {key: value[:200] for key, value in images.items()}


def dataset(folder, source, *, verify=False, extra=False, mirrors=()):
    sizes = {"batch_size": 16, "eval_batch_size": 16, "val_size": 10, "split_seed": 0}
    about = {"name": "svhn", "num_classes": 10, "image_shape": (3, 32, 32), "augment": "none", "seed": 0}
    return SVHN(folder=folder, source=source, verify=verify, extra=extra, mirrors=mirrors, **sizes, **about)


def opened(data):
    data.prepare_data()
    data.setup()
    return data


def left(folder):
    return [path.name for path in folder.iterdir() if path.suffix != ".lock"]


def test_real_crops_keep_their_digits_and_ten_is_the_zero(crops, tmp_path):
    np.savez(tmp_path / "svhn.npz", **crops)
    for place, source in enumerate((svhn(tmp_path / "official", crops), tmp_path / "svhn.npz")):
        data = opened(dataset(tmp_path / str(place), source))
        assert np.array_equal(data.test.x.permute(0, 2, 3, 1).numpy(), crops["x_test"])
        assert np.array_equal(data.test.y.numpy(), crops["y_test"])
        assert np.array_equal(data.train.x.permute(0, 2, 3, 1).numpy(), crops["x_train"][data.train.ids])
        assert np.array_equal(data.train.y.numpy(), crops["y_train"][data.train.ids])
        assert 0 in data.test.y


def test_extra_joins_the_training_part_only_when_asked(tmp_path):
    images = drawn(10, 32)
    images |= {"x_extra": images["x_train"][:5], "y_extra": images["y_train"][:5]}
    source = svhn(tmp_path / "official", images, parts=("train", "test", "extra"))
    plain, more = dataset(tmp_path / "a", source), dataset(tmp_path / "b", source, extra=True)
    assert (len(plain.build_arrays().y_train), len(more.build_arrays().y_train)) == (40, 45)
    assert np.array_equal(more.build_arrays().y_train[40:], images["y_train"][:5])
    plain.prepare()
    with pytest.raises(ValueError, match=r"svhn.pt was prepared with extra=False instead of True; .*dataset.folder="):
        dataset(tmp_path / "a", source, extra=True).prepare()


def test_each_official_file_is_asked_for_with_its_mirrors_and_checksum(tmp_path, monkeypatch):
    asked = {}

    def download(urls, target, *, md5, offline):
        asked[target.name] = (urls, md5)
        svhn(tmp_path, drawn(10, 32), parts=(target.name.removesuffix("_32x32.mat"),))
        return urls[1]

    monkeypatch.setattr(module, "download", download)
    arrays = dataset(tmp_path, None, mirrors=["https://mirror"]).build_arrays()
    assert arrays.source == "https://mirror/train_32x32.mat"
    wanted = {name: ([url, f"https://mirror/{name}"], md5) for url, name, md5 in official.SVHN.split_list.values()}
    del wanted["extra_32x32.mat"]
    assert asked == wanted


def test_anything_but_the_true_set_is_refused_unless_told_otherwise(tmp_path):
    images = drawn(10, 32)
    data = dataset(tmp_path / "data", svhn(tmp_path / "official", images), verify=True)
    with pytest.raises(ValueError, match=r"train_32x32.mat is not SVHN's: expected md5 e26dedcc.*verify=false"):
        data.prepare()
    np.savez(tmp_path / "svhn.npz", **images)
    with pytest.raises(ValueError, match=r"official set's 4948 training images of class 0, got 4; .*verify=false"):
        dataset(tmp_path / "data", tmp_path / "svhn.npz", verify=True).prepare()
    assert left(data.folder) == []


def test_the_counts_are_those_of_the_official_page():
    assert (sum(TRAIN_COUNTS), sum(TEST_COUNTS)) == (73_257, 26_032)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": np.ones((39, 1), np.uint8)}, "expected a label for each of 40 images, got 39; give dataset.source="),
        ({"y": np.full((40, 1), 11, np.uint8)}, "expected labels 1 to 10, got 11"),
        ({"y": np.zeros((40, 1), np.uint8)}, "expected labels 1 to 10, got 0"),
        ({"y": np.full((40, 1), 1.5)}, "expected labels 1 to 10, got 1.5"),
        ({"y": np.full((40, 1), np.nan)}, "expected labels 1 to 10, got nan"),
        ({"y": np.array([["one"]] * 40)}, "expected labels 1 to 10"),
        ({"y": np.zeros((0, 1), np.uint8), "X": np.zeros((32, 32, 3, 0), np.uint8)}, "1 to 10, got none"),
        ({"X": np.zeros((32, 32, 40), np.uint8)}, r"expected X \(32, 32, 3, N\) of uint8, got \(32, 32, 40\) of uint8"),
        ({"X": np.zeros((32, 32, 3, 40))}, r"expected X \(32, 32, 3, N\) of uint8, got .* of float64"),
        ({"X": None}, r"is damaged: expected arrays X and y, got arrays \['y'\]"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_as_it_should_be_is_refused_in_one_line(change, message, tmp_path):
    source = svhn(tmp_path / "official", drawn(10, 32))
    content = {"X": np.zeros((32, 32, 3, 40), np.uint8), "y": np.ones((40, 1), np.uint8)} | change
    savemat(source / "train_32x32.mat", {key: value for key, value in content.items() if value is not None})
    data = dataset(tmp_path / "data", source)
    with pytest.raises(ValueError, match=message) as caught:
        data.prepare()
    assert "\n" not in str(caught.value)
    assert "train_32x32.mat" in str(caught.value)
    assert left(data.folder) == []


def test_a_digit_that_is_missing_is_named(tmp_path):
    images = drawn(10, 32)
    source = svhn(tmp_path / "official", images | {"y_train": np.where(images["y_train"] == 7, 8, images["y_train"])})
    with pytest.raises(ValueError, match="training images of all 10 classes, got none of 7"):
        dataset(tmp_path / "data", source).prepare()


def test_damaged_files_are_refused_in_one_line(tmp_path):
    source = svhn(tmp_path / "official", drawn(10, 32))
    path = source / "train_32x32.mat"
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    for damage in (whole[: len(whole) // 2], b"", b"<html>try again later</html>", whole[:100], bytes(flipped)):
        path.write_bytes(damage)
        with pytest.raises(
            ValueError, match=r"train_32x32.mat is damaged: expected arrays X and y, got .*; delete"
        ) as caught:
            dataset(tmp_path / "data", source).prepare()
        assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"train_32x32.mat does not exist; give dataset.source="):
        dataset(tmp_path / "data", source).prepare()


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "_MAX_BYTES", 32 << 20)
    packer = zlib.compressobj()
    packed = packer.compress(bytes(48 << 20)) + packer.flush()
    path = tmp_path / "train_32x32.mat"
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + struct.pack("<II", 15, len(packed)) + packed)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"is damaged: .*more than \d+ bytes unpacked"):
        read_mat(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 << 20

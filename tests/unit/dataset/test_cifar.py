"""The official layout, written here as Python 2 wrote it, with small random images."""

import io
import pickle
import tarfile
import tracemalloc
from typing import ClassVar

import numpy as np
import pytest
from archives import cifar100_files, real, tar, zipped
from archives import extracted as write_files
from torchvision import datasets as official

from fsr_lab.dataset import cifar
from fsr_lab.dataset import download as module
from fsr_lab.dataset.archive import Limits
from fsr_lab.dataset.cifar import CIFAR10, CIFAR100

TRAIN = [name for name, _ in official.CIFAR10.train_list]
TEST = [name for name, _ in official.CIFAR10.test_list]


class Python2Pickler(pickle._Pickler):
    """Writes byte strings and text as Python 2 did: both as its one kind of string."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, value):
        data = value.encode("latin1") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + len(data).to_bytes(4, "little") + data)
        self.memoize(value)

    dispatch[bytes] = save_string
    dispatch[str] = save_string


class RawArray:
    """An array that pickles as numpy did under Python 2: its contents as a string."""

    def __init__(self, array):
        self.array = array

    def __reduce__(self):
        state = (1, self.array.shape, self.array.dtype, False, self.array.tobytes())
        return (*self.array.__reduce__()[:1], (np.ndarray, (0,), b"b"), state)


def python2_pickle(content):
    stream = io.BytesIO()
    Python2Pickler(stream, protocol=2).dump(content)
    return stream.getvalue().replace(b"numpy._core.", b"numpy.core.")


def images(seed, count=20):
    rng = np.random.default_rng(seed)
    return rng.integers(256, size=(count, 32, 32, 3), dtype=np.uint8), np.arange(count) % 10


def batch(seed):
    x, y = images(seed)
    rows = np.ascontiguousarray(x.transpose(0, 3, 1, 2).reshape(len(x), -1))
    return {
        "batch_label": "one of six",
        "labels": y.tolist(),
        "data": RawArray(rows),
        "filenames": ["a.png"] * 20,
    }


def members():
    return {name: python2_pickle(batch(seed)) for seed, name in enumerate(TRAIN + TEST)}


def archive(path, files, base=official.CIFAR10.base_folder):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(f"{base}/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def extracted(folder, files):
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def npz(path, **changes):
    parts = [images(seed) for seed in range(6)]
    x, y = np.concatenate([x for x, _ in parts[:5]]), np.concatenate([y for _, y in parts[:5]])
    np.savez(path, **({"x_train": x, "y_train": y, "x_test": parts[5][0], "y_test": parts[5][1]} | changes))
    return path


def cifar10(folder, source, *, verify=False):
    sizes = {"batch_size": 16, "eval_batch_size": 16, "val_size": 10, "split_seed": 0}
    about = {"name": "cifar10", "num_classes": 10, "image_shape": (3, 32, 32), "augment": "none", "seed": 0}
    return CIFAR10(folder=folder, source=source, verify=verify, mirrors=["https://mirror/folder"], **sizes, **about)


def opened(data):
    data.prepare_data()
    data.setup()
    return data


def test_archive_folder_and_npz_give_the_same_images(tmp_path):
    sources = (
        archive(tmp_path / "cifar.tar.gz", members()),
        extracted(tmp_path / "cifar-10-batches-py", members()),
        npz(tmp_path / "cifar10.npz"),
    )
    hashes = {opened(cifar10(tmp_path / str(place), source)).data_hash for place, source in enumerate(sources)}
    assert len(hashes) == 1
    data = opened(cifar10(tmp_path / "0", sources[0]))
    x, y = images(5)
    assert np.array_equal(data.test.x.permute(0, 2, 3, 1).numpy(), x)
    assert np.array_equal(data.test.y.numpy(), y)
    first = images(0)[0]
    assert np.array_equal(data.train.x[0].permute(1, 2, 0).numpy(), first[data.train.ids[0]])


def test_an_archive_in_the_data_folder_is_used_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "download", None)
    archive(tmp_path / official.CIFAR10.filename, members())
    assert len(opened(cifar10(tmp_path, None)).test.y) == 20


def test_without_anything_the_official_source_is_asked_then_the_mirrors(tmp_path, monkeypatch):
    def download(urls, target, *, md5, offline):
        assert urls == [official.CIFAR10.url, "https://mirror/folder/cifar-10-python.tar.gz"]
        assert md5 == official.CIFAR10.tgz_md5
        assert offline == "dataset.source=/path/to/cifar-10-python.tar.gz, its extracted folder, or an .npz"
        archive(target, members())
        return urls[1]

    monkeypatch.setattr(module, "download", download)
    assert cifar10(tmp_path, None).build_arrays().source == "https://mirror/folder/cifar-10-python.tar.gz"


def test_anything_but_the_true_images_is_refused_unless_told_otherwise(tmp_path):
    for source in (archive(tmp_path / "a.tar.gz", members()), extracted(tmp_path / "batches", members())):
        with pytest.raises(ValueError, match=r"data_batch_1 of .* is not CIFAR-10's: expected md5 c99cafc1"):
            cifar10(tmp_path, source, verify=True).prepare()
    with pytest.raises(ValueError, match=r"x_train of .*npz is not CIFAR-10's: expected sha256 47af8b02.*verify=false"):
        cifar10(tmp_path, npz(tmp_path / "a.npz"), verify=True).prepare()


class Crafted:
    def __reduce__(self):
        return print, ("this ran",)


class CraftedInside(Crafted):
    def __reduce__(self):
        return eval, ("print('this ran')",)


@pytest.mark.parametrize("crafted", [Crafted(), {"data": CraftedInside(), "labels": []}])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_would_run_code_is_refused(crafted, protocol, tmp_path, capsys):
    bad = members() | {"data_batch_3": pickle.dumps(crafted, protocol)}
    for source in (archive(tmp_path / "a.tar.gz", bad), extracted(tmp_path / "batches", bad)):
        with pytest.raises(ValueError, match=r"data_batch_3 of .*a pickle that would load .*(print|eval) \(refused\)"):
            cifar10(tmp_path, source).prepare()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data_batch_2": b""}, "data_batch_2 of .*: expected pickled data and labels"),
        (
            {"data_batch_2": b"\x80\x02}q\x01."},
            "data_batch_2 of .*: expected pickled data and labels, got no 'data' in it",
        ),
        ({"data_batch_2": python2_pickle([1])}, "data_batch_2 of .*: expected pickled data and labels"),
        (
            {"test_batch": python2_pickle(batch(0) | {"labels": [1]})},
            r"\(N, 3072\) data and N labels, got \(20, 3072\)",
        ),
        (
            {"test_batch": python2_pickle(batch(0) | {"data": [1]})},
            r"\(N, 3072\) data and N labels, got \(1,\)",
        ),
        (
            {"test_batch": python2_pickle(batch(0) | {"labels": [11] * 20})},
            r"labels in \[0, 10\), got 11 for image 0",
        ),
    ],
)
def test_damaged_batches_are_refused_in_one_line(change, message, tmp_path):
    data = cifar10(tmp_path / "data", archive(tmp_path / "a.tar.gz", members() | change))
    with pytest.raises(ValueError, match=message) as caught:
        data.prepare()
    assert "\n" not in str(caught.value)
    assert not any(path.suffix != ".lock" for path in data.folder.iterdir())


def test_damaged_archives_are_refused_in_one_line(tmp_path):
    whole = archive(tmp_path / "a.tar.gz", members()).read_bytes()
    (tmp_path / "half.tar.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.tar.gz").write_bytes(b"<html>try again later</html>")
    (tmp_path / "empty.tar.gz").write_bytes(b"")
    for name in ("half", "text", "empty"):
        data = cifar10(tmp_path / "data", tmp_path / f"{name}.tar.gz")
        with pytest.raises(
            ValueError, match=rf"{name}.tar.gz is damaged: expected the official archive.*give"
        ) as caught:
            data.prepare()
        assert "\n" not in str(caught.value)
        assert not any(path.suffix != ".lock" for path in data.folder.iterdir())


@pytest.mark.parametrize("name", ["../outside/data_batch_1", "/tmp/data_batch_1", "a/../../b", "..\\b"])
@pytest.mark.parametrize("write", [tar, zipped])
def test_an_archive_with_a_path_that_leads_out_of_it_is_refused(name, write, tmp_path):
    files = {f"{official.CIFAR10.base_folder}/{name}": data for name, data in members().items()}
    path = write(tmp_path / "a", {name: b"x"} | files)
    with pytest.raises(
        ValueError, match=r"a: holds a path that leads out of it .*not the official archive: give"
    ) as caught:
        cifar10(tmp_path / "data", path).prepare()
    assert "\n" not in str(caught.value)
    assert {file.name for file in tmp_path.rglob("*") if file.is_file()} <= {"a", "cifar10.lock"}


def test_a_member_that_is_a_link_is_not_followed(tmp_path):
    path = tmp_path / "link.tar.gz"
    with tarfile.open(path, "w:gz") as archived:
        link = tarfile.TarInfo(f"{official.CIFAR10.base_folder}/data_batch_1")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archived.addfile(link)
    with pytest.raises(ValueError, match="expected data_batch_1 to be a file, got tar type"):
        cifar10(tmp_path, path).prepare()


@pytest.mark.parametrize("write", [tar, zipped])
def test_a_bomb_is_refused_before_it_is_unpacked(write, tmp_path):
    base = official.CIFAR10.base_folder
    path = write(tmp_path / "bomb", {f"{base}/data_batch_1": bytes(cifar.LIMITS.member + 1)})
    assert path.stat().st_size < 1 << 20
    tracemalloc.start()
    with pytest.raises(
        ValueError, match=rf"data_batch_1 to have at most \d+ bytes, got {cifar.LIMITS.member + 1} bytes"
    ):
        cifar10(tmp_path / "data", path).prepare()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


@pytest.mark.parametrize("write", [tar, zipped])
def test_many_files_that_are_too_much_together_are_refused(write, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "LIMITS", Limits(member=100_000, total=150_000))
    files = {f"{official.CIFAR10.base_folder}/{name}": data for name, data in members().items()}
    with pytest.raises(ValueError, match="expected files of at most 150000 bytes together"):
        cifar10(tmp_path / "data", write(tmp_path / "a", files)).prepare()


def test_sources_that_are_not_there_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone.npz does not exist; correct dataset.source"):
        cifar10(tmp_path, tmp_path / "gone.npz").prepare()
    with pytest.raises(FileNotFoundError, match=r"gone does not exist; give dataset.source="):
        cifar10(tmp_path, tmp_path / "gone").prepare()
    folder = extracted(tmp_path / "batches", {"data_batch_1": members()["data_batch_1"]})
    with pytest.raises(FileNotFoundError, match=r"lacks cifar-10-batches-py/data_batch_2; give dataset.source="):
        cifar10(tmp_path, folder).prepare()


def cifar100(folder, source, *, verify=False):
    sizes = {"batch_size": 16, "eval_batch_size": 16, "val_size": 100, "split_seed": 0, "mirrors": []}
    about = {"name": "cifar100", "num_classes": 100, "image_shape": (3, 32, 32), "augment": "none", "seed": 0}
    return CIFAR100(folder=folder, source=source, verify=verify, **sizes, **about)


@pytest.fixture(scope="module")
def some():
    """Four training images and one test image of each class of CIFAR-100."""
    images = real("cifar100_small")
    chosen = {}
    for part, count in (("train", 4), ("test", 1)):
        y = images[f"y_{part}"]
        ids = np.concatenate([np.flatnonzero(y == label)[:count] for label in range(100)])
        chosen |= {f"x_{part}": images[f"x_{part}"][ids], f"y_{part}": y[ids]}
    return chosen


def test_cifar100_gives_the_real_images_their_fine_labels(some, tmp_path):
    sources = (
        tar(tmp_path / "a.tar.gz", cifar100_files(some)),
        write_files(tmp_path / "parent", cifar100_files(some)),
        tmp_path / "parent" / "cifar-100-python",
        tmp_path / "a.npz",
    )
    np.savez(sources[-1], **some)
    for place, source in enumerate(sources):
        data = opened(cifar100(tmp_path / str(place), source))
        assert np.array_equal(data.test.x.permute(0, 2, 3, 1).numpy(), some["x_test"])
        assert np.array_equal(data.test.y.numpy(), some["y_test"])
        assert np.array_equal(data.train.x.permute(0, 2, 3, 1).numpy(), some["x_train"][data.train.ids])
        assert np.array_equal(data.train.y.numpy(), some["y_train"][data.train.ids])


def test_a_missing_class_of_cifar100_is_named(some, tmp_path):
    kept = some["y_train"] != 17
    images = some | {"x_train": some["x_train"][kept], "y_train": some["y_train"][kept]}
    with pytest.raises(
        ValueError, match=r"training images of all 100 classes, got none of 17; set dataset.num_classes"
    ):
        cifar100(tmp_path / "data", tar(tmp_path / "a.tar.gz", cifar100_files(images))).prepare()


def test_a_part_of_cifar100_is_refused_unless_told_otherwise(some, tmp_path):
    with pytest.raises(
        ValueError, match=r"train of .*a.tar.gz is not CIFAR-100's: expected md5 16019d7e.*verify=false"
    ):
        cifar100(tmp_path / "data", tar(tmp_path / "a.tar.gz", cifar100_files(some)), verify=True).prepare()
    np.savez(tmp_path / "a.npz", **some)
    with pytest.raises(ValueError, match=r"official set's 500 training images of class 0, got 4; .*verify=false"):
        cifar100(tmp_path / "data", tmp_path / "a.npz", verify=True).prepare()


def test_an_archive_of_cifar10_is_not_one_of_cifar100(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"lacks cifar-100-python/train; give dataset.source="):
        cifar100(tmp_path / "data", archive(tmp_path / "a.tar.gz", members())).prepare()


def test_an_npz_bomb_is_refused_before_it_is_unpacked(tmp_path):
    zeros = np.zeros((30_000, 3, 32, 32), np.uint8)
    np.savez_compressed(tmp_path / "a.npz", x_train=zeros, y_train=np.zeros(30_000), x_test=zeros[:1], y_test=[0])
    with pytest.raises(ValueError, match=r"a.npz is damaged: expected arrays .*, got \d+ bytes out of \d+; replace it"):
        cifar10(tmp_path / "data", tmp_path / "a.npz").prepare()


def test_a_damaged_npz_is_refused_in_one_line(tmp_path):
    whole = npz(tmp_path / "a.npz").read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    np.savez(tmp_path / "short.npz", x_train=np.zeros(3))
    npz(tmp_path / "object.npz", y_test=np.array([Crafted()], dtype=object))
    for name in ("half", "short", "object"):
        with pytest.raises(ValueError, match=rf"{name}.npz is damaged: expected arrays x_train, .*replace") as caught:
            cifar10(tmp_path, tmp_path / f"{name}.npz").prepare()
        assert "\n" not in str(caught.value)

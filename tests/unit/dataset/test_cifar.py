"""The official layout, written here as Python 2 wrote it, with small random images."""

import io
import pickle
import tarfile
from typing import ClassVar

import numpy as np
import pytest
from torchvision import datasets as official

from fsr_lab.dataset import cifar
from fsr_lab.dataset.cifar import CIFAR10

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
    return CIFAR10(folder=folder, source=source, verify=verify, **sizes, **about)


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
    monkeypatch.setattr(cifar, "download", None)
    archive(tmp_path / official.CIFAR10.filename, members())
    assert len(opened(cifar10(tmp_path, None)).test.y) == 20


def test_without_anything_the_official_source_is_asked_then_the_mirror(tmp_path, monkeypatch):
    def download(urls, target, *, md5, offline):
        assert urls == [official.CIFAR10.url, cifar.MIRROR]
        assert md5 == official.CIFAR10.tgz_md5
        assert offline == "dataset.source=/path/to/cifar10.npz or the official archive"
        archive(target, members())
        return urls[1]

    monkeypatch.setattr(cifar, "download", download)
    assert cifar10(tmp_path, None).build_arrays().source == cifar.MIRROR


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
            "data_batch_2 of .*: expected pickled data and labels, got 'data'",
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
    archive(tmp_path / "elsewhere.tar.gz", members(), base="../outside")
    for name in ("half", "text", "elsewhere"):
        with pytest.raises(ValueError, match=rf"{name}.tar.gz is damaged: expected the official archive") as caught:
            cifar10(tmp_path, tmp_path / f"{name}.tar.gz").prepare()
        assert "\n" not in str(caught.value)
    assert not (tmp_path.parent / "outside").exists()


def test_a_member_that_is_a_link_or_far_too_large_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "link.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        link = tarfile.TarInfo(f"{official.CIFAR10.base_folder}/data_batch_1")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(ValueError, match="expected data_batch_1 to be a file of at most"):
        cifar10(tmp_path, path).prepare()
    monkeypatch.setattr(cifar, "_MAX_MEMBER_BYTES", 1000)
    with pytest.raises(ValueError, match=r"at most 1000 bytes, got \d+ bytes"):
        cifar10(tmp_path, archive(tmp_path / "a.tar.gz", members())).prepare()


def test_sources_that_are_not_there_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone.npz does not exist; give dataset.source="):
        cifar10(tmp_path, tmp_path / "gone.npz").prepare()
    folder = extracted(tmp_path / "batches", {"data_batch_1": members()["data_batch_1"]})
    with pytest.raises(FileNotFoundError, match=r"data_batch_2 does not exist; give dataset.source="):
        cifar10(tmp_path, folder).prepare()


def test_a_damaged_npz_is_refused_in_one_line(tmp_path):
    whole = npz(tmp_path / "a.npz").read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    np.savez(tmp_path / "short.npz", x_train=np.zeros(3))
    npz(tmp_path / "object.npz", y_test=np.array([Crafted()], dtype=object))
    for name in ("half", "short", "object"):
        with pytest.raises(ValueError, match=rf"{name}.npz is damaged: expected arrays x_train, .*replace") as caught:
            cifar10(tmp_path, tmp_path / f"{name}.npz").prepare()
        assert "\n" not in str(caught.value)

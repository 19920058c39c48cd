import errno
import json
import os
import threading
import time

import numpy as np
import pytest
import torch

from fsr_lab.dataset import prepare as module
from fsr_lab.dataset.arrays import Arrays
from fsr_lab.dataset.manifest import read_about
from fsr_lab.dataset.prepare import prepare

SIDE_16 = {"side": 16, "shape": (3, 16, 16)}


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    return Arrays(
        x_train=rng.integers(256, size=(40, 3, 16, 16), dtype=np.uint8),
        y_train=np.arange(40) % 4,
        x_test=rng.integers(256, size=(8, 3, 16, 16), dtype=np.uint8),
        y_test=np.arange(8) % 4,
        source="rng",
    )


def make(folder, build=arrays, parameters=SIDE_16, **options):
    return prepare("mine", folder, build, image_shape=(3, 16, 16), num_classes=4, parameters=parameters, **options)


def load_prepared(name, folder, parameters=SIDE_16):
    return module.load_prepared(name, folder, parameters)


def changed(path):
    """Flip one byte in the middle, as a bad disk or an editor would."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


def test_what_was_prepared_is_loaded(tmp_path):
    path = make(tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "mine.pt"
    data = load_prepared("mine", path.parent)
    wanted = arrays()
    for key in ("x_train", "y_train", "x_test", "y_test"):
        assert np.array_equal(getattr(data, key).numpy(), getattr(wanted, key))
    assert data.x_train.dtype == torch.uint8
    assert data.y_train.dtype == torch.int64


def test_the_manifest_describes_the_file(tmp_path):
    path = make(tmp_path)
    manifest = json.loads((tmp_path / "mine.json").read_text())
    assert manifest["name"] == "mine"
    assert manifest["source"] == "rng"
    assert manifest["parameters"] == {"side": 16, "shape": [3, 16, 16]}
    assert read_about(tmp_path / "mine.json") == (40, 8, "rng")
    assert manifest["counts"] == {"train": 40, "test": 8}
    assert manifest["shapes"]["x_train"] == [40, 3, 16, 16]
    assert set(manifest["sha256"]) == {"x_train", "y_train", "x_test", "y_test"}
    assert manifest["size_bytes"] == path.stat().st_size
    assert manifest["mtime_ns"] == path.stat().st_mtime_ns


def test_the_data_hash_follows_the_data(tmp_path):
    hashes = set()
    for place, seed in (("a", 0), ("b", 0), ("c", 1)):
        make(tmp_path / place, lambda seed=seed: arrays(seed))
        hashes.add(load_prepared("mine", tmp_path / place).data_hash)
    assert len(hashes) == 2
    assert all(len(value) == 12 for value in hashes)


def test_prepared_data_are_not_built_again_unless_forced(tmp_path):
    make(tmp_path)
    before = load_prepared("mine", tmp_path).data_hash

    def fail():
        raise AssertionError("built again")

    make(tmp_path, fail)
    make(tmp_path, lambda: arrays(seed=1), force=True)
    assert load_prepared("mine", tmp_path).data_hash != before


def test_jobs_that_start_at_once_build_once(tmp_path):
    builds, hashes, jobs = [], [], 20
    together = threading.Barrier(jobs)

    def build():
        builds.append(threading.get_ident())
        time.sleep(0.2)
        return arrays()

    def job():
        together.wait(timeout=10)
        make(tmp_path, build)
        hashes.append(load_prepared("mine", tmp_path).data_hash)

    threads = [threading.Thread(target=job) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(builds) == 1
    assert len(hashes) == jobs
    assert len(set(hashes)) == 1


def test_a_job_that_waits_for_another_says_so(tmp_path, caplog):
    caplog.set_level("INFO", logger="fsr_lab.dataset.prepare")
    building, go_on = threading.Event(), threading.Event()

    def build():
        building.set()
        assert go_on.wait(timeout=10)
        return arrays()

    first = threading.Thread(target=make, args=(tmp_path, build))
    second = threading.Thread(target=make, args=(tmp_path, build))
    first.start()
    assert building.wait(timeout=10)
    second.start()
    while "waiting for another job that prepares mine" not in caplog.text and second.is_alive():
        time.sleep(0.01)
    go_on.set()
    for thread in (first, second):
        thread.join(timeout=10)
    assert caplog.text.count("waiting for another job") == 1
    assert caplog.text.count("preparing mine") == 1


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"side": 8, "shape": (3, 16, 16)}, "side=16 instead of 8"),
        ({"side": 16, "shape": (3, 8, 8)}, r"shape=\[3, 16, 16\] instead of \[3, 8, 8\]"),
        (SIDE_16 | {"source": "elsewhere"}, "source=None instead of elsewhere"),
        (SIDE_16 | {"verify": True}, "verify=None instead of True"),
    ],
)
def test_what_was_made_with_other_parameters_is_refused_and_can_be_made_anew(parameters, said, tmp_path):
    make(tmp_path)
    for ask in (lambda: make(tmp_path, parameters=parameters), lambda: load_prepared("mine", tmp_path, parameters)):
        with pytest.raises(
            ValueError, match=f"mine.pt was prepared with {said}; .*dataset.folder=.*force=true"
        ) as caught:
            ask()
        assert "\n" not in str(caught.value)
    make(tmp_path, parameters=parameters, force=True)
    load_prepared("mine", tmp_path, parameters)


def test_verified_images_serve_who_would_not_verify_them_and_whose_source_is_gone(tmp_path):
    make(tmp_path, parameters=SIDE_16 | {"verify": True, "source": "gone"})
    load_prepared("mine", tmp_path, SIDE_16 | {"verify": False})
    make(tmp_path, parameters=SIDE_16 | {"verify": False}, force=True)
    with pytest.raises(ValueError, match="verify=False instead of True"):
        load_prepared("mine", tmp_path, SIDE_16 | {"verify": True})


def test_what_an_earlier_version_prepared_is_made_anew(tmp_path):
    make(tmp_path)
    manifest = json.loads((tmp_path / "mine.json").read_text())
    del manifest["parameters"]
    (tmp_path / "mine.json").write_text(json.dumps(manifest))
    make(tmp_path, lambda: arrays(seed=1))
    assert np.array_equal(load_prepared("mine", tmp_path).x_test.numpy(), arrays(seed=1).x_test)


def test_a_missing_file_says_how_to_prepare_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"mine.pt is not prepared; run: fsr prepare dataset=mine$"):
        load_prepared("mine", tmp_path)
    make(tmp_path).unlink()
    with pytest.raises(FileNotFoundError, match="not prepared"):
        load_prepared("mine", tmp_path)


def test_a_truncated_file_is_refused(tmp_path):
    path = make(tmp_path)
    size = path.stat().st_size
    os.truncate(path, size // 2)
    message = f"mine.pt is damaged: expected {size} bytes, got {size // 2}; run: fsr prepare dataset=mine force"
    with pytest.raises(ValueError, match=message) as caught:
        load_prepared("mine", tmp_path)
    assert "\n" not in str(caught.value)


def test_a_tampered_file_is_refused(tmp_path):
    path = make(tmp_path)
    changed(path)
    with pytest.raises(ValueError, match=r"mine.pt was changed: expected x_train \w{12}, got \w{12}.*force=true"):
        load_prepared("mine", tmp_path)
    make(tmp_path, force=True)
    load_prepared("mine", tmp_path)


def test_a_file_that_is_no_longer_one_of_ours_is_refused(tmp_path):
    path = make(tmp_path)
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(ValueError, match=r"mine.pt is damaged: expected a prepared file, got .*force=true") as caught:
        load_prepared("mine", tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"sha256": {}}'])
def test_a_damaged_manifest_is_refused(text, tmp_path):
    make(tmp_path)
    (tmp_path / "mine.json").write_text(text)
    with pytest.raises(ValueError, match=r"mine.json is damaged: .*force=true"):
        load_prepared("mine", tmp_path)


def test_a_copy_is_verified_by_contents_once(tmp_path):
    path = make(tmp_path)
    os.utime(path, ns=(1, 1))
    load_prepared("mine", tmp_path)
    assert json.loads((tmp_path / "mine.json").read_text())["mtime_ns"] == 1


def test_a_failed_build_leaves_nothing(tmp_path):
    def fail():
        raise ConnectionError("no network")

    with pytest.raises(ConnectionError):
        make(tmp_path, fail)
    with pytest.raises(ValueError, match="expected images"):
        make(tmp_path, lambda: arrays()._replace(x_train=np.zeros((40, 5), np.uint8)))
    assert not any(path.suffix != ".lock" for path in tmp_path.iterdir())


def test_a_full_disk_leaves_nothing_and_says_so(tmp_path, monkeypatch):
    class FullDisk:
        """A file on a disk with room for a few kilobytes."""

        def __init__(self, stream):
            self.stream, self.room = stream, 4096

        def write(self, data):
            self.room -= memoryview(data).nbytes
            if self.room < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.stream.write(data)

    save = torch.save
    monkeypatch.setattr(torch, "save", lambda tensors, stream: save(tensors, FullDisk(stream)))
    with pytest.raises(OSError, match=r"no space left on the disk of .*: free some and run again") as caught:
        make(tmp_path)
    assert caught.value.errno == errno.ENOSPC
    assert not any(path.suffix != ".lock" for path in tmp_path.iterdir())
    monkeypatch.undo()
    make(tmp_path)
    load_prepared("mine", tmp_path)

"""fsr prepare as a user meets it: one dataset, all of them, a mirror, a folder of pictures."""

import functools
import hashlib
import http.server
import threading

import numpy as np
import pytest
from archives import cifar100_files, drawn, pictures, svhn, tar
from omegaconf import OmegaConf

from fsr_lab.dataset import cifar
from fsr_lab.dataset import download as module
from fsr_lab.dataset.svhn import TEST_COUNTS, TRAIN_COUNTS

DOWNLOADED = ["cifar10", "cifar100", "svhn", "tiny_imagenet"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where data lie: a folder of this test's own."""
    monkeypatch.setenv("FSR_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def offline(monkeypatch):
    """No source answers."""

    def download(urls, target, *, md5, offline):
        raise OSError(f"no source gave {target.name} ({urls[0]}: offline); without a network: {offline}")

    monkeypatch.setattr(module, "download", download)


def test_help_says_where_data_lie_and_how_large_they_are(fsr, folder):
    outcome = fsr("prepare", "--help")
    assert f"lie in {folder}:" in outcome.out
    rows = {line.split()[0]: line for line in outcome.out.splitlines() if line.startswith("  ")}
    small, large = 3 * 32 * 32 + 8, 3 * 64 * 64 + 8  # bytes of an image and its label
    for name, size in (
        ("cifar10", f"{60_000 * small / 1e6:.0f} MB"),
        ("cifar100", f"{60_000 * small / 1e6:.0f} MB"),
        ("svhn", f"{(sum(TRAIN_COUNTS) + sum(TEST_COUNTS)) * small / 1e6:.0f} MB"),
        ("svhn", f"{(sum(TRAIN_COUNTS) + sum(TEST_COUNTS) + 531_131) * small / 1e9:.1f} GB"),
        ("tiny_imagenet", f"{110_000 * large / 1e9:.1f} GB"),
    ):
        assert size in rows[name], name


def test_all_prepares_what_it_can_and_says_what_lies_where(fsr, folder, offline):
    outcome = fsr("prepare", "dataset=all")
    assert outcome.code == 2
    rows = {line.split()[0]: line for line in outcome.out.splitlines()[-7:]}
    assert list(rows) == [*DOWNLOADED[:2], "digits", "image_folder", *DOWNLOADED[2:], "toy"]
    for name in DOWNLOADED:
        assert "failed: no source gave" in rows[name]
        assert "dataset.source=" in rows[name]
    for name, path in (("digits", folder / "digits_16" / "digits.pt"), ("toy", folder / "toy.pt")):
        assert path.is_file()
        assert f"{path}: {path.stat().st_size / 2**20:.1f} MiB" in rows[name]
    assert "1437 training and 360 test images from sklearn.datasets.load_digits" in rows["digits"]
    assert "left out" in rows["image_folder"]
    assert [line.split(":")[0] for line in outcome.err.splitlines() if "no source gave" in line] == ["fsr"] * 4


def test_all_takes_no_option_of_one_dataset(fsr, folder):
    line = fsr("prepare", "dataset=all", "dataset.name=mine").refusal()
    assert "dataset=all prepares every dataset as it is configured, got dataset.name=mine" in line
    assert not folder.exists()


def test_a_broken_official_source_gives_way_to_a_mirror(fsr, folder, tmp_path, monkeypatch):
    images = drawn(100, 32)
    served = tar(tmp_path / "cifar-100-python.tar.gz", cifar100_files(images))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *args: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        host = f"http://127.0.0.1:{server.server_port}"
        md5 = hashlib.md5(served.read_bytes(), usedforsecurity=False).hexdigest()
        monkeypatch.setattr(cifar, "_CIFAR100", cifar._CIFAR100._replace(url=f"{host}/moved/{served.name}", md5=md5))
        outcome = fsr("prepare", "dataset=cifar100", f"dataset.mirrors=['{host}']", "dataset.verify=false")
        server.shutdown()
        thread.join(timeout=5)
    assert outcome.code == 0, outcome.err
    row = f"{folder / 'cifar100.pt'}: 1.5 MiB, 400 training and 100 test images from {host}/{served.name}"
    assert row in outcome.out
    assert "HTTP Error 404" in outcome.out + outcome.err
    assert {path.name for path in folder.iterdir()} == {served.name, "cifar100.pt", "cifar100.json", "cifar100.lock"}
    again = fsr("prepare", "dataset=cifar100", "dataset.verify=false")  # the server is gone
    assert again.out == row + "\n"


def test_other_parameters_are_refused_and_the_cures_cure(fsr, folder, tmp_path):
    images = drawn(10, 32)
    images |= {"x_extra": images["x_train"], "y_extra": images["y_train"]}
    source = svhn(tmp_path / "official", images, parts=("train", "test", "extra"))
    about = ("prepare", "dataset=svhn", f"dataset.source={source}", "dataset.verify=false")
    assert "40 training and 10 test images" in fsr(*about).out
    line = fsr(*about, "dataset.extra=true").refusal()
    assert "svhn.pt was prepared with extra=False instead of True" in line
    elsewhere = f"dataset.folder={folder / 'more'}"
    assert "80 training" in fsr(*about, "dataset.extra=true", elsewhere).out
    assert "40 training" in fsr(*about).out
    assert "80 training" in fsr(*about, "dataset.extra=true", "force=true").out


def test_pictures_of_ones_own_are_trained_on(fsr, tiny, folder, tmp_path):
    x, y = np.random.default_rng(0).integers(256, size=(60, 16, 16, 3), dtype=np.uint8), np.arange(60) % 3
    source = pictures(tmp_path / "mine", x, y)
    about = ("dataset=image_folder", "dataset.num_classes=3", "dataset.batch_size=16")
    assert "dataset.side to the size of all pictures" in fsr("prepare", *about, f"dataset.source={source}").refusal()
    about = (*about, "dataset.side=16")
    outcome = fsr("prepare", *about, f"dataset.source={source}")
    assert f"48 training and 12 test images from {source}" in outcome.out
    run = tmp_path / "run"
    mine = [word for word in tiny if not word.startswith("dataset")]
    outcome = fsr("train", *mine, *about, "trainer.max_epochs=1", "evaluation=none", f"hydra.run.dir={run}")
    assert outcome.code == 0, outcome.err
    assert OmegaConf.load(run / "config.yaml").model.num_classes == 3

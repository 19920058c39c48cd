"""A disk that refuses: one line of cause and cure, and the last good checkpoint whole, to go on from."""

import errno
import io
import os

import pytest
import torch

from fsr_lab.core import files

STEPS = 9  # of an epoch


def state(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.fixture(scope="module")
def argv(tiny):
    often = ("callback.often.steps=4", "callback.often.minutes=null")
    return ("train", *tiny, *often, "evaluation=none", "trainer.max_epochs=1")


@pytest.fixture(scope="module")
def untouched(warm, argv, tmp_path_factory):
    run = tmp_path_factory.mktemp("untouched") / "run"
    reply = warm.run(*argv, f"hydra.run.dir={run}")
    assert reply.code == 0, reply.err
    return run


def complaint(reply):
    """Return the one line that a command ended with."""
    assert reply.code == 2, reply
    assert "Traceback" not in reply.err
    (line,) = [line for line in reply.err.splitlines() if line.startswith("fsr:")]
    return line


def assert_continued(warm, run, untouched):
    """Continue on a disk that is sound again, and end as a run that was on one all the time."""
    reply = warm.run("train", f"resume={run}")
    assert reply.code == 0, reply.err
    one, other = state(run), state(untouched)
    assert one["global_step"] == other["global_step"] == STEPS
    assert all(torch.equal(value, other["state_dict"][name]) for name, value in one["state_dict"].items())


def test_a_disk_that_is_full_at_the_second_checkpoint_leaves_the_first(warm, argv, untouched, tmp_path):
    run = tmp_path / "run"
    line = complaint(warm.run(*argv, f"hydra.run.dir={run}", faults=[("full", "last.ckpt", 1)]))
    assert f"no space left on the disk of {run / 'checkpoints'}: free some and run again" in line
    assert state(run)["global_step"] == 4
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["last.ckpt"]
    assert_continued(warm, run, untouched)


@pytest.mark.slow
def test_a_disk_that_is_full_for_the_metrics_stops_the_run_too(warm, argv, untouched, tmp_path):
    run = tmp_path / "run"
    line = complaint(warm.run(*argv, f"hydra.run.dir={run}", faults=[("full_for_metrics",)]))
    assert f"no space left on the disk of {run}: free some and run again" in line
    assert_continued(warm, run, untouched)


@pytest.mark.slow
def test_a_checkpoint_that_is_larger_than_allowed_is_no_checkpoint(warm, argv, untouched, tmp_path):
    run = tmp_path / "run"
    line = complaint(warm.run(*argv, f"hydra.run.dir={run}", faults=[("small_files", 20_000)]))
    assert f"a file in {run / 'checkpoints'} would be larger than is allowed here" in line
    assert list((run / "checkpoints").iterdir()) == []
    assert_continued(warm, run, untouched)


@pytest.mark.slow
def test_a_folder_that_becomes_read_only_leaves_what_is_in_it(warm, argv, untouched, tmp_path):
    run = tmp_path / "run"
    fault = ("read_only", str(run / "checkpoints"), 6)
    line = complaint(warm.run(*argv, f"hydra.run.dir={run}", faults=[fault]))
    assert f"{run / 'checkpoints'} cannot be written (permission denied)" in line
    assert "paths.runs=DIR" in line
    assert state(run)["global_step"] == 4
    os.chmod(run / "checkpoints", 0o755)
    assert_continued(warm, run, untouched)


@pytest.mark.parametrize("place", ["runs", "runs/mine"])
def test_a_place_where_nothing_can_be_written_is_refused_before_anything(warm, argv, tmp_path, place):
    (tmp_path / place).mkdir(parents=True)
    run = tmp_path / "runs" / "mine"
    line = complaint(warm.run(*argv, f"hydra.run.dir={run}", faults=[("read_only", str(tmp_path / place), -1)]))
    assert f"{tmp_path / place} cannot be written (permission denied): make it writable" in line
    assert "paths.runs=DIR" in line
    os.chmod(tmp_path / place, 0o755)


def test_a_file_in_the_way_is_refused(fsr, argv, tmp_path):
    (tmp_path / "file").write_text("")
    line = fsr(*argv, f"hydra.run.dir={tmp_path / 'file' / 'run'}").refusal()
    assert "a file stands where a folder should" in line


class FullDisk(io.FileIO):
    """A file on a disk that takes 1,000 bytes more."""

    room = 1000

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


def test_a_full_disk_while_preparing_leaves_no_half_file(fsr, tmp_path, monkeypatch):
    monkeypatch.setenv("FSR_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(files, "open", lambda path, *mode: FullDisk(path, "w"), raising=False)
    assert "no space left" in fsr("prepare", "dataset=toy").refusal()
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["toy.lock"]

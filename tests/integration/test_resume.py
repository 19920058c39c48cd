"""Stopped, killed, repeated: a run ends with the weights of one that was never touched."""

import csv
import json
import os
import shutil
import signal
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from fsr_lab.core.threat import Threat

STEPS = 5  # of an epoch: 288 images in batches of 64, the last of 32
SMALL = (
    "strategy=at", "defense=fsr", "defense.module.width=4", "dataset.batch_size=64", "strategy.attack.steps=1",
    "val_attack.steps=1",
)  # fmt: skip


def state(run, which="last"):
    return torch.load(run / "checkpoints" / f"{which}.ckpt", weights_only=True)


def assert_bit_equal(run, reference):
    one, other = state(run), state(reference)
    assert one["global_step"] == other["global_step"] == 2 * STEPS
    assert one["state_dict"].keys() == other["state_dict"].keys()
    differing = [name for name, value in one["state_dict"].items() if not torch.equal(value, other["state_dict"][name])]
    assert differing == []
    for mine, theirs in zip(one["optimizer_states"], other["optimizer_states"], strict=True):
        for key, value in mine["state"].items():
            assert torch.equal(value["momentum_buffer"], theirs["state"][key]["momentum_buffer"])


def assert_same_records(run, reference):
    with np.load(run / "records" / "last.npz") as mine, np.load(reference / "records" / "last.npz") as theirs:
        assert all(np.array_equal(mine[name], theirs[name], equal_nan=True) for name in ("outcome", "margin", "norm"))


def status(run):
    return json.loads((run / "status.json").read_text())["state"]


def complaint(reply):
    (line,) = [line for line in reply.err.splitlines() if line.startswith("fsr:")]
    return line


@pytest.fixture(scope="module")
def argv(tiny):
    attacked = ("evaluation=none", "+attack@evaluation.attacks.pgd=pgd10_train", "evaluation.attacks.pgd.steps=2")
    return ("train", *tiny, *SMALL, *attacked, "optim=sgd_onecycle")  # a schedule by steps is the harder case


@pytest.fixture(scope="module")
def untouched(warm, argv, tmp_path_factory):
    """Return a run that nobody stopped."""
    run = tmp_path_factory.mktemp("untouched") / "run"
    reply = warm.run(*argv, f"hydra.run.dir={run}")
    assert reply.code == 0, reply.err
    return run


class Stopped(NamedTuple):
    """A run that was stopped in mid-epoch by a real Ctrl-C, then continued."""

    run: Path
    code: int
    line: str
    step: int
    status: str
    resumed: int


@pytest.fixture(scope="module")
def stopped(warm, argv, tmp_path_factory):
    run = tmp_path_factory.mktemp("stopped") / "run"
    reply = warm.run(*argv, f"hydra.run.dir={run}", stops=[("train", STEPS + 2, "SIGINT")])
    step, was = state(run)["global_step"], status(run)
    resumed = warm.run("train", f"resume={run}")
    return Stopped(run, reply.code, complaint(reply), step, was, resumed.code)


def test_ctrl_c_ends_cleanly_and_says_how_to_continue(stopped):
    assert (stopped.code, stopped.step) == (130, STEPS + 3)
    assert f"SIGINT at step {stopped.step}" in stopped.line
    assert f"fsr train resume={stopped.run}" in stopped.line
    assert (stopped.status, stopped.resumed, status(stopped.run)) == ("running", 0, "finished")


def test_a_stopped_run_ends_as_one_never_stopped(stopped, untouched):
    assert_bit_equal(stopped.run, untouched)
    assert_same_records(stopped.run, untouched)


def test_a_resumed_run_logs_no_step_twice(stopped):
    steps = []
    for path in sorted(stopped.run.glob("metrics/version_*/metrics.csv")):
        with path.open(newline="") as stream:
            steps += [int(row["step"]) for row in csv.DictReader(stream) if row["train/loss"]]
    assert len(steps) == len(set(steps))
    # Lightning writes a step's row after the callbacks, in one of which the run was stopped
    assert set(range(2 * STEPS)) - set(steps) <= {stopped.step - 1}


def test_a_killed_job_of_a_sweep_is_resumed_by_its_directory(warm, argv, untouched, tmp_path):
    verb, *overrides = argv
    command = (verb, "-m", *overrides, "seed=0", f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir='seed=0,first'")
    assert warm.run(*command, stops=[("train", STEPS + 2, "SIGKILL")]).code == -9
    run = tmp_path / "seed=0,first"
    assert state(run)["global_step"] == STEPS  # of the epoch's end
    reply = warm.run("train", f"resume={run}")
    assert reply.code == 0, reply.err
    assert_bit_equal(run, untouched)
    assert_same_records(run, untouched)


@pytest.mark.parametrize(
    ("often", "killed_at", "kept"),
    [
        ("steps=2", ("train", STEPS + 2), STEPS + 1),  # two steps an epoch's end away
        ("minutes=1e-9", ("train", STEPS + 3), STEPS + 3),
        # an epoch's last step is saved behind its validation, which a resumed run would otherwise have missed
        ("steps=1", ("validate", STEPS), STEPS - 1),
        # the third of these checkpoints is written and not yet in its place
        ("steps=1", ("rename", 2), 2),
    ],
)
def test_a_killed_run_loses_what_came_after_its_last_checkpoint(
    warm, argv, untouched, tmp_path, often, killed_at, kept
):
    run = tmp_path / "run"
    command = (*argv, f"callback.often.{often}", f"hydra.run.dir={run}")
    assert warm.run(*command, stops=[(*killed_at, "SIGKILL")]).code == -9
    assert state(run)["global_step"] == kept
    assert warm.run(*command).code == 0
    assert_bit_equal(run, untouched)
    best, other = state(run, "best"), state(untouched, "best")
    assert best["global_step"] == other["global_step"]
    assert all(torch.equal(value, other["state_dict"][name]) for name, value in best["state_dict"].items())
    assert not list(run.glob("checkpoints/.*"))


def test_a_batch_systems_warning_is_a_stop_too(warm, argv, tmp_path):
    run = tmp_path / "run"
    reply = warm.run(*argv, f"hydra.run.dir={run}", stops=[("train", 2, "SIGUSR1")])
    assert (reply.code, state(run)["global_step"], status(run)) == (130, 3, "running")
    assert "SIGUSR1 at step 3" in complaint(reply)


@pytest.mark.slow
def test_a_run_stopped_often_ends_as_one_never_touched(warm, argv, untouched, tmp_path):
    run = tmp_path / "run"
    command = (*argv, f"hydra.run.dir={run}")
    assert warm.run(*command, stops=[("train", 1, "SIGKILL")]).code == -9
    assert list(run.glob("checkpoints/*")) == []
    reply = warm.run(*command, stops=[("train", 2, "SIGTERM")])
    assert reply.code == 130
    assert "SIGTERM at step 3" in complaint(reply)
    assert warm.run("train", f"resume={run}", stops=[("train", 3, "SIGINT")]).code == 130
    assert warm.run("train", f"resume={run}", stops=[("train", 4, "SIGKILL")]).code == -9
    assert warm.run(*command).code == 0
    assert_bit_equal(run, untouched)


def test_sigterm_between_two_steps_waits_for_the_next(fsr, argv, tmp_path, monkeypatch):
    # where the metrics are written, which is most of a small step's time, Lightning would end the epoch by an exception
    run, saves = tmp_path / "run", []
    original = CSVLogger.save

    def saving(self):
        saves.append(run)
        if len(saves) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self)

    monkeypatch.setattr(CSVLogger, "save", saving)
    outcome = fsr(*argv, f"hydra.run.dir={run}")
    assert outcome.code == 130
    assert f"SIGTERM at step {state(run)['global_step']}" in complaint(outcome)
    assert state(run)["global_step"] < STEPS


def test_ctrl_c_in_the_last_validation_is_heeded(warm, argv, tmp_path):
    run = tmp_path / "run"
    once = ("trainer.max_epochs=1", f"hydra.run.dir={run}")
    reply = warm.run(*argv, *once, stops=[("validate", STEPS, "SIGINT")])
    assert reply.code == 130
    assert "attacking" not in reply.err
    assert state(run)["global_step"] == STEPS


def test_a_second_ctrl_c_stops_at_once_and_loses_no_checkpoint(warm, argv, tmp_path):
    run = tmp_path / "run"
    reply = warm.run(*argv, f"hydra.run.dir={run}", stops=[("train", STEPS + 2, "SIGINT")] * 2)
    assert state(run)["global_step"] == STEPS
    assert reply.code == 130
    assert complaint(reply)


def test_ctrl_c_in_an_attack_is_one_line(warm, argv, untouched, tmp_path):
    run = Path(shutil.copytree(untouched, tmp_path / "run"))
    (run / "status.json").unlink()
    command = (*argv, "ledger=none", f"hydra.run.dir={run}")  # the ledger has all that the untouched run found
    reply = warm.run(*command, stops=[("attack", 0, "SIGINT")])
    assert reply.code == 130
    assert complaint(reply)
    assert "Traceback" not in reply.err
    before = (run / "checkpoints" / "last.ckpt").read_bytes()
    reply = warm.run(*command)
    assert reply.code == 0, reply.err
    assert "train: step" not in reply.err
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == before
    assert (status(run), (run / "records" / "last.json").is_file()) == ("finished", True)


@pytest.mark.slow
def test_a_stopped_sweep_starts_no_further_job_and_is_continued(warm, argv, untouched, tmp_path):
    verb, *overrides = argv
    command = (verb, "-m", *overrides, "seed=0,1", f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir=job${seed}")
    assert warm.run(*command, stops=[("train", STEPS + 2, "SIGINT")]).code == 130
    assert state(tmp_path / "job0")["global_step"] == STEPS + 3
    assert not (tmp_path / "job1" / "checkpoints").exists()
    reply = warm.run(*command)
    assert reply.code == 0, reply.err
    assert_bit_equal(tmp_path / "job0", untouched)
    assert status(tmp_path / "job1") == "finished"
    # another seed, other weights
    one, other = (state(run)["state_dict"] for run in (untouched, tmp_path / "job1"))
    trained = [name for name, value in one.items() if value.is_floating_point() and value.ndim > 1]
    assert len(trained) > 4
    assert not any(torch.equal(one[name], other[name]) for name in trained)


def test_one_seed_gives_equal_bits(warm, argv, untouched, tmp_path):
    assert warm.run(*argv, f"hydra.run.dir={tmp_path / 'again'}").code == 0
    assert_bit_equal(tmp_path / "again", untouched)
    assert_same_records(tmp_path / "again", untouched)


def test_moved_data_do_not_hinder_a_resume(warm, untouched, tmp_path):
    run = Path(shutil.copytree(untouched, tmp_path / "run"))
    reply = warm.run("train", f"resume={run}", "test_samples=7", f"paths.data={tmp_path / 'data'}")
    assert reply.code == 0, reply.err
    assert state(run)["global_step"] == 2 * STEPS
    assert list((tmp_path / "data").rglob("*.pt"))


def test_two_consecutive_training_steps_start_from_different_noise(fsr, tiny, tmp_path, monkeypatch):
    starts = []
    drawn = Threat.random_start

    def spying(self, x):
        start = drawn(self, x)
        starts.append(((start - x) / self.eps, (x > 0.2) & (x < 0.8)))  # where nothing is clipped, noise is seen bare
        return start

    monkeypatch.setattr(Threat, "random_start", spying)
    few = (
        "strategy=at", "strategy.attack.steps=1", "trainer.max_epochs=1", "+trainer.limit_train_batches=3",
        "evaluation=none", "dataset.val_size=0",
    )  # fmt: skip
    assert fsr("train", *tiny, *few, f"hydra.run.dir={tmp_path / 'run'}").code == 0
    assert len(starts) == 3
    for (noise, bare), (following, also) in pairwise(starts):
        difference = (noise - following)[bare & also].abs()
        assert len(difference) > 1000
        assert difference.mean() == pytest.approx(2 / 3, abs=0.05)  # of two independent uniform draws

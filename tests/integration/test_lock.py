"""Two commands on one run directory: the second is refused before it touches anything."""

import os

import pytest

from fsr_lab.engine.lock import held, is_held

ONCE = ("trainer.max_epochs=1", "evaluation=none")


@pytest.fixture
def busy(fsr, tmp_path):
    """Return a run directory that this process is at work in."""
    with held(tmp_path / "busy"):
        yield tmp_path / "busy"


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "train.log"}


def test_a_second_training_is_refused_and_changes_nothing(busy, warm, tiny):
    before = contents(busy)
    for words in ((), ("resume=never",)):
        reply = warm.run("train", *tiny, *ONCE, f"hydra.run.dir={busy}", *words)
        assert reply.code == 2
        (complaint,) = [line for line in reply.err.splitlines() if line.startswith("fsr:")]
        assert f"{busy} is in use by process {os.getpid()}" in complaint
    assert {path: text for path, text in contents(busy).items() if ".hydra" not in path.parts} == before


def test_an_evaluation_into_it_is_refused_and_one_beside_it_is_not(busy, warm, trained, tmp_path):
    command = ("evaluate", f"run={trained.run}", "attack=[fgsm]", "test_samples=20")
    reply = warm.run(*command, f"hydra.run.dir={busy}")
    assert reply.code == 2
    assert f"in use by process {os.getpid()}" in reply.err
    assert not (busy / "config.yaml").exists()
    reply = warm.run(*command, f"hydra.run.dir={tmp_path / 'beside'}")
    assert reply.code == 0, reply.err
    assert not is_held(tmp_path / "beside")


def test_a_run_is_held_while_it_trains_and_free_once_it_is_stopped(warm, tiny, tmp_path):
    run = tmp_path / "run"
    reply = warm.run("train", *tiny, *ONCE, f"hydra.run.dir={run}", stops=[("train", 2, "SIGKILL")])
    assert reply.code == -9
    assert (run / ".holder.json").is_file()
    assert not is_held(run)
    assert warm.run("train", f"resume={run}").code == 0
    assert not (run / ".holder.json").exists()

"""A sweep's jobs that Slurm has: found again by whoever starts the sweep again, by what squeue and the folders say."""

import os
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from fsr_lab.sweep import slurm_queue


@pytest.fixture
def squeue(tmp_path, monkeypatch):
    """Return the function that sets what squeue answers: (a shell line)."""

    def answering(line):
        path = tmp_path / "bin" / "squeue"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/asked\n{line}\n')
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")

    monkeypatch.setattr(slurm_queue, "PAUSE_SECONDS", 0)
    return answering


@pytest.fixture
def sweep(tmp_path):
    return tmp_path / "sweep"


def submitting(sweep, names, *numbers, fails=None):
    """Submit as a process does whose jobs get these numbers, and return what was launched."""
    cfg = OmegaConf.create({"hydra": {"launcher": {"submitit_folder": None}}})
    folder, launched = slurm_queue.own_folder(cfg, sweep), []

    def launch():
        launched.extend(names)
        for number in numbers:
            Path(cfg.hydra.launcher.submitit_folder.replace("%j", number)).mkdir(parents=True)
        if fails is not None:
            raise fails

    slurm_queue.submit([sweep / name for name in names], sweep, folder, launch)
    return launched


def test_without_a_submission_squeue_is_not_asked(squeue, sweep):
    squeue("exit 1")
    assert slurm_queue.in_hand(sweep) == {}
    slurm_queue.wait(sweep)


def test_jobs_are_told_by_their_place_in_the_list_of_their_submission(squeue, sweep, tmp_path):
    squeue("true")
    submitting(sweep, ["seed=0", "a/seed=1", "seed=2"], "12_0", "12_1", "12_2")
    submitting(sweep, ["seed=3"], "7")
    squeue("echo 12_1; echo 7; echo 99; echo 12_10")  # other people's sweeps have jobs, too
    assert slurm_queue.in_hand(sweep) == {"12_1": sweep / "a" / "seed=1", "7": sweep / "seed=3"}
    asked = (tmp_path / "asked").read_text().split()
    assert {"--array", f"--user={os.getuid()}", "--format=%i"} <= set(asked)


def test_a_studys_jobs_have_no_list_and_are_known_all_the_same(squeue, sweep):
    (sweep / ".submitit" / "1_1" / "5").mkdir(parents=True)
    squeue("echo 5")
    assert slurm_queue.in_hand(sweep) == {"5": None}


def test_a_slurm_that_does_not_answer_is_no_empty_queue(squeue, sweep, tmp_path, capsys):
    squeue("true")
    submitting(sweep, ["seed=0"], "12")
    squeue("echo 'no controller' >&2; exit 1")
    with pytest.raises(ValueError, match="Slurm does not answer: no controller; try again when squeue does"):
        slurm_queue.in_hand(sweep)
    # while it is waited for, it may come back
    squeue(f"test -e {tmp_path}/back && exit 0; touch {tmp_path}/back; echo 'no controller' >&2; exit 1")
    slurm_queue.wait(sweep)
    assert capsys.readouterr().err.count("Slurm does not answer") == 1


def test_jobs_of_other_processes_are_waited_for(squeue, sweep, tmp_path, capsys):
    squeue("true")
    submitting(sweep, ["seed=0", "seed=1"], "12_0", "12_1")
    # twice they are there, then gone
    squeue(f"echo x >>{tmp_path}/times; test $(wc -l <{tmp_path}/times) -gt 2 || echo 12_1")
    assert submitting(sweep, []) == []
    assert len((tmp_path / "times").read_text().splitlines()) == 3
    assert "Slurm has 1 of these jobs already, which are not submitted again but waited for" in capsys.readouterr().out


def test_a_lost_job_ends_no_other_and_none_taken_is_an_error(squeue, sweep, capsys):
    squeue("true")
    lost = RuntimeError("Job 12_0 left no result")
    assert submitting(sweep, ["seed=0", "seed=1"], "12_0", "12_1", fails=lost) == ["seed=0", "seed=1"]
    assert "fsr: a job was lost (Job 12_0 left no result)" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="sbatch says no"):
        submitting(sweep, ["seed=0"], fails=RuntimeError("sbatch says no"))


def test_who_stops_waiting_is_told_what_goes_on(squeue, sweep, capsys):
    squeue("true")
    submitting(sweep, ["seed=0", "seed=1"], "12_0", "12_1")
    squeue("echo 12_0; echo 12_1")
    with pytest.raises(KeyboardInterrupt), slurm_queue.leaving_jobs(sweep):
        raise KeyboardInterrupt
    assert "Slurm goes on with the jobs 12; scancel ends them" in capsys.readouterr().err

"""launcher=joblib_gpus for real: worker processes that train, fail, are killed and are stopped."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

QUICK = ("evaluation=none", "trainer.max_epochs=1", "+trainer.limit_train_batches=2")
POOL = ("launcher=joblib_gpus", "hydra.launcher.n_jobs=2", "hydra.sweep.subdir='seed=${seed}'")
LONG = ("evaluation=none", "trainer.max_epochs=1000", "dataset.val_size=0")


def rows(sweep):
    with (sweep / "index.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def states(sweep):
    return {row["seed"]: row["state"] for row in rows(sweep)}


@pytest.fixture
def start(tiny, data, tmp_path):
    """Return the function that starts `fsr train -m` in a process group of its own: (*overrides)."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "FSR_DATA": str(data), "FSR_RUNS": str(tmp_path / "runs")}
    started = []

    def starting(*words):
        command = [Path(sys.executable).with_name("fsr"), "train", "-m", *tiny, *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(
            [*command, f"hydra.sweep.dir={tmp_path / 'sweep'}"], cwd=tmp_path, env=env, start_new_session=True, **pipes
        )
        started.append(process)
        return process

    yield starting
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(process, *paths):
    """Wait until all of some files are there, as long as the process lives."""
    while not all(path.is_file() for path in paths):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def workers(sweep):
    """Return {seed: pid} of the jobs that say they run."""
    jobs = {path.parent.name[5:]: json.loads(path.read_text()) for path in sweep.glob("*/job.json")}
    return {seed: job["where"][0] for seed, job in jobs.items() if job["state"] == "running"}


@pytest.mark.slow
def test_jobs_of_other_processes_are_as_those_of_this_one(start, tmp_path):
    sweep = tmp_path / "sweep"
    process = start(*QUICK, *POOL, "seed=0,1,2,3", "optim.lr=0.1")
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert states(sweep) == dict.fromkeys("0123", "finished")
    where = {json.loads(path.read_text())["where"][0] for path in sweep.glob("*/job.json")}
    assert len(where) == 2
    assert process.pid not in where
    assert "4 jobs: 4 finished" in out
    # a wrong value of one job only
    process = start(*QUICK, *POOL, "seed=4,-1,5", "optim.lr=0.1")
    out, err = process.communicate()
    assert process.returncode == 2
    assert states(sweep) == dict.fromkeys("012345", "finished") | {"-1": "failed"}
    (line,) = [line for line in err.splitlines() if line.startswith("fsr:")]
    assert "expected seed to be a whole number of at least 0, got -1" in line
    assert "Traceback" not in err
    assert "job 1 failed: expected seed" in out
    assert "ValueError: expected seed" in (sweep / "seed=-1" / "job.log").read_text()


@pytest.mark.slow
def test_a_killed_worker_takes_no_other_job_with_it(start, tmp_path):
    sweep = tmp_path / "sweep"
    process = start(*LONG, "trainer.max_epochs=25", *POOL, "seed=0,1,2")
    wait_for(process, sweep / "seed=0" / "checkpoints" / "last.ckpt")
    os.kill(workers(sweep)["0"], signal.SIGKILL)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "a worker process was lost" in err
    assert states(sweep) == dict.fromkeys("012", "finished")
    assert json.loads((sweep / "seed=0" / "job.json").read_text())["attempts"] == 2
    assert "3 jobs: 3 finished" in out


@pytest.mark.slow
def test_a_job_whose_process_dies_every_time_has_failed(start, tmp_path):
    sweep = tmp_path / "sweep"
    process = start(*LONG, "trainer.max_epochs=25", *POOL, "seed=0,1,2")
    done = 0
    while process.poll() is None:
        if workers(sweep).get("0") is not None and attempts(sweep / "seed=0") > done:
            done = attempts(sweep / "seed=0")
            os.kill(workers(sweep)["0"], signal.SIGKILL)
        time.sleep(0.05)
    out, err = process.communicate()
    assert process.returncode == 2, err
    assert states(sweep) == {"0": "failed", "1": "finished", "2": "finished"}
    assert f"its process was killed {done} times" in out
    assert done in (2, 3), "the last of them alone"


def attempts(run):
    return json.loads((run / "job.json").read_text())["attempts"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_stopped_pool_saves_its_jobs_and_starts_no_other(start, tmp_path, name):
    sweep = tmp_path / "sweep"
    process = start(*LONG, *POOL, "seed=0,1,2")
    wait_for(process, *[sweep / f"seed={seed}" / "checkpoints" / "last.ckpt" for seed in (0, 1)])
    if name == "SIGINT":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process at once
    else:
        os.kill(process.pid, signal.SIGTERM)  # as who ends one process does
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert states(sweep) == {"0": "interrupted", "1": "interrupted", "2": "queued"}
    for seed in (0, 1):
        assert f"{name} at step" in json.loads((sweep / f"seed={seed}" / "job.json").read_text())["error"]
    assert not (sweep / ".stopping").exists()
    while lives(process.pid):  # workers end a moment after the process that they worked for
        time.sleep(0.05)


def lives(group):
    """Tell whether a process group has a process."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True

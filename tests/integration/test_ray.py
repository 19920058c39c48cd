"""launcher=ray for real: a cluster started for the sweep, and one that was there."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]  # Ray's own, of which there are many

QUICK = ("evaluation=none", "trainer.max_epochs=1", "+trainer.limit_train_batches=2")
LONG = ("evaluation=none", "dataset.val_size=0")


@pytest.fixture
def start(tiny, data, tmp_path):
    """Return the function that starts `fsr train -m` on Ray: (*overrides)."""
    env = os.environ | {"FSR_DATA": str(data), "FSR_RUNS": str(tmp_path / "runs")}
    started = []

    def starting(*words):
        command = [Path(sys.executable).with_name("fsr"), "train", "-m", *tiny, "launcher=ray", *words]
        place = (f"hydra.sweep.dir={tmp_path / 'sweep'}", "hydra.sweep.subdir='seed=${seed}'")
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen([*command, *place], cwd=tmp_path, env=env, start_new_session=True, **pipes)
        started.append(process)
        return process

    yield starting
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def cluster():
    """Return the address of a cluster of two nodes, the second of which has a resource of its own."""
    from ray.cluster_utils import Cluster

    before = signal.getsignal(signal.SIGTERM)
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes.add_node(num_cpus=1, resources={"big": 1})
    yield nodes.address
    nodes.shutdown()
    signal.signal(signal.SIGTERM, before)  # Ray sets one of its own


def states(sweep):
    with (sweep / "index.csv").open(newline="") as stream:
        return {row["seed"]: row["state"] for row in csv.DictReader(stream)}


def job(sweep, seed):
    return json.loads((sweep / f"seed={seed}" / "job.json").read_text())


def wait_for_checkpoint(process, sweep, seed=0):
    while not (sweep / f"seed={seed}" / "checkpoints" / "last.ckpt").is_file():
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)


def test_jobs_of_a_cluster_started_here_are_as_local_ones(start, tmp_path):
    process = start(*QUICK, "seed=0,-1,1")
    out, err = process.communicate()
    assert process.returncode == 2, err
    assert states(tmp_path / "sweep") == {"0": "finished", "-1": "failed", "1": "finished"}
    assert "job 1 failed: expected seed to be a whole number of at least 0, got -1" in out
    assert process.pid not in [job(tmp_path / "sweep", seed)["where"][0] for seed in (0, 1, -1)]


def test_jobs_run_on_the_cluster_that_is_there_where_its_resources_are(start, cluster, tmp_path):
    process = start(*QUICK, "seed=0,1", f"launcher.address={cluster}", "+launcher.resources.big=1")
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "2 jobs: 2 finished" in out
    first, second = job(tmp_path / "sweep", 0), job(tmp_path / "sweep", 1)
    assert max(first["started"], second["started"]) >= min(first["ended"], second["ended"])  # one at a time


def test_a_killed_job_goes_on_and_takes_no_other_with_it(start, tmp_path):
    sweep = tmp_path / "sweep"
    process = start(*LONG, "trainer.max_epochs=30", "seed=0,1")
    wait_for_checkpoint(process, sweep)
    os.kill(job(sweep, 0)["where"][0], signal.SIGKILL)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "2 jobs: 2 finished" in out
    assert (job(sweep, 0)["attempts"], job(sweep, 1)["attempts"]) == (2, 1)


def test_ctrl_c_saves_what_runs(start, tmp_path):
    sweep = tmp_path / "sweep"
    process = start(*LONG, "trainer.max_epochs=100000", "seed=0,1", "launcher.cpus=2")
    wait_for_checkpoint(process, sweep)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert states(sweep) == {"0": "interrupted", "1": "queued"}
    assert "SIGTERM at step" in job(sweep, 0)["error"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("launcher.address=127.0.0.1:1",), ["no Ray cluster answers", "127.0.0.1:1", "ray start --head"]),
        (("launcher.gpus=1",), ["a job asks for 1 CPU, 1 GPU", "at most", "0 GPU", "launcher.gpus"]),
    ],
)
def test_what_ray_cannot_do_is_refused_before_any_job_starts(start, tmp_path, words, said):
    process = start(*QUICK, "seed=0,1", *words)
    _, err = process.communicate()
    assert process.returncode == 2
    (line,) = [line for line in err.splitlines() if line.startswith("fsr:")]
    assert [text for text in said if text not in line] == [], line
    assert "Traceback" not in err
    assert [job(tmp_path / "sweep", seed)["attempts"] for seed in (0, 1)] == [0, 0]

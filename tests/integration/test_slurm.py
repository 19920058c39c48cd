"""launcher=slurm on a real Slurm of one node: jobs out of time or pre-empted are queued again, and end as others do."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slurm

HERE = Path(__file__).parent
QUICK = ("evaluation=none", "trainer.max_epochs=1", "+trainer.limit_train_batches=2")
LONG = ("evaluation=none", "strategy=at", "defense=fsr", "defense.module.width=4", "dataset.batch_size=32")
SLURM = ("launcher=slurm", "launcher.cpus=1", "launcher.memory_gb=2", "launcher.minutes=30")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """Start a Slurm, yield the environment of its clients, stop it."""
    folder = tmp_path_factory.mktemp("slurm")
    subprocess.run([HERE / "slurm_cluster.sh", "start", folder], check=True)
    yield os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "OMP_NUM_THREADS": "1"}
    subprocess.run([HERE / "slurm_cluster.sh", "stop", folder], check=True)


class Sweep:
    """`fsr train -m` in tmp_path, and what lies there."""

    def __init__(self, folder, env, tiny):
        self.folder, self.env, self.tiny, self.place = folder, env, tiny, folder / "sweep"

    def start(self, *words):
        script = Path(sys.executable).with_name("fsr")
        place = (f"hydra.sweep.dir={self.place}", "hydra.sweep.subdir='seed=${seed}'")
        return subprocess.Popen(
            [script, "train", "-m", *self.tiny, *SLURM, *words, *place], cwd=self.folder, env=self.env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *words):
        process = self.start(*words)
        out, err = process.communicate()
        return process.returncode, out, err

    def client(self, *command):
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, check=True)
        return done.stdout.split()

    def states(self):
        with (self.place / "index.csv").open(newline="") as stream:
            return {row["seed"]: row["state"] for row in csv.DictReader(stream)}

    def job(self, seed):
        return json.loads((self.place / f"seed={seed}" / "job.json").read_text())

    def wait_for_checkpoint(self, process, seed=0):
        while not (self.place / f"seed={seed}" / "checkpoints" / "last.ckpt").is_file():
            assert process.poll() is None, process.communicate()
            time.sleep(0.2)

    def weights(self, seed=0):
        path = self.place / f"seed={seed}" / "checkpoints" / "last.ckpt"
        return torch.load(path, weights_only=True)["state_dict"]


@pytest.fixture
def sweep(cluster, data, tiny, tmp_path):
    sweep = Sweep(tmp_path, cluster | {"FSR_DATA": str(data), "FSR_RUNS": str(tmp_path / "runs")}, tiny)
    yield sweep
    subprocess.run(["scancel", "--user=root"], env=sweep.env, check=True)
    while sweep.client("squeue", "--noheader", "--format=%i"):
        time.sleep(0.5)


@pytest.fixture(scope="session")
def untouched(cluster, data, tiny, tmp_path_factory):
    """Return the weights of a job that nobody stopped."""
    folder = tmp_path_factory.mktemp("untouched")
    sweep = Sweep(folder, cluster | {"FSR_DATA": str(data), "FSR_RUNS": str(folder / "runs")}, tiny)
    code, _, err = sweep.run(*LONG, "trainer.max_epochs=20", "seed=0")
    assert code == 0, err
    return sweep.weights()


def assert_equal(mine, theirs):
    assert mine.keys() == theirs.keys()
    assert [name for name, value in mine.items() if not torch.equal(value, theirs[name])] == []


def test_jobs_of_slurm_are_as_local_ones(sweep):
    code, out, err = sweep.run(*QUICK, "seed=0,-1,1", "launcher.account=null")
    assert code == 2, err
    assert sweep.states() == {"0": "finished", "-1": "failed", "1": "finished"}
    assert "job 1 failed: expected seed to be a whole number of at least 0, got -1" in out
    assert "3 jobs: 1 failed, 2 finished" in out
    assert "Traceback" not in err
    assert "ValueError: expected seed" in (sweep.place / "seed=-1" / "job.log").read_text()
    code, out, err = sweep.run(*QUICK, "seed=0,1")
    assert code == 0, err
    assert [sweep.job(seed)["attempts"] for seed in (0, 1)] == [1, 1]  # nothing was submitted


@pytest.mark.parametrize("how", ["told that the time is up", "pre-empted"])
def test_a_job_that_slurm_takes_away_ends_as_one_that_it_left_alone(sweep, untouched, how):
    process = sweep.start(*LONG, "trainer.max_epochs=20", "seed=0")
    sweep.wait_for_checkpoint(process)
    (number,) = sweep.client("squeue", "--noheader", "--format=%i")
    if how == "told that the time is up":
        sweep.client("scancel", "--signal=USR2", number)
    else:
        sweep.client("sbatch", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=sleep 2")
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "1 job: 1 finished" in out
    assert sweep.job(0)["attempts"] == 2
    assert_equal(sweep.weights(), untouched)


def test_a_job_out_of_time_is_queued_again_until_it_is_done(sweep):
    # Slurm counts in minutes: told half a minute before the second is over, or up to a minute earlier
    time_limit = ("launcher.minutes=2", "hydra.launcher.signal_delay_s=30")
    process = sweep.start(*LONG, "trainer.max_epochs=100000", "seed=0", *time_limit)
    while not (sweep.place / "seed=0" / "job.json").is_file() or sweep.job(0)["attempts"] < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.5)
    assert "Slurm: the time is up" in (sweep.place / "seed=0" / "job.log").read_text()
    assert "SIGUSR2: stopping after this step" in (sweep.place / "seed=0" / "job.log").read_text()
    process.terminate()
    process.communicate()


def test_a_job_out_of_time_too_often_has_failed(sweep):
    process = sweep.start(
        *LONG, "trainer.max_epochs=100000", "seed=0", "launcher.resubmissions=0", "launcher.minutes=5"
    )
    sweep.wait_for_checkpoint(process)
    sweep.client("scancel", "--signal=USR2", *sweep.client("squeue", "--noheader", "--format=%i"))
    out, err = process.communicate()
    assert process.returncode == 2, err
    assert "timed-out too many times" in sweep.job(0)["error"]
    assert "job 0 failed" in out


def test_two_ranks_in_one_job_are_stopped_and_go_on(sweep):
    two = ("trainer=ddp", "trainer.accelerator=cpu", "launcher.cpus=2", "trainer.log_every_n_steps=1")
    process = sweep.start(*LONG, *two, "trainer.max_epochs=12", "seed=0")
    sweep.wait_for_checkpoint(process)
    sweep.client("scancel", "--signal=USR2", *sweep.client("squeue", "--noheader", "--format=%i"))
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "1 job: 1 finished" in out
    assert sweep.job(0)["attempts"] == 2
    (said,) = sweep.place.glob(".submitit/*/*/*_log.err")  # what ranks say is not in the job's own log
    assert "SIGTERM: stopping after this step" in said.read_text()
    state = torch.load(sweep.place / "seed=0" / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 12 * 9


def test_a_sweep_started_again_while_its_jobs_wait_submits_none_twice(sweep):
    (blocker,) = sweep.client(
        "sbatch", "--parsable", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=sleep 3600"
    )

    def waiting(process, count):
        while len(sweep.client("squeue", "--array", "--partition=debug", "--noheader", "--format=%i")) < count:
            assert process.poll() is None, process.communicate()
            time.sleep(0.5)

    first = sweep.start(*QUICK, "seed=0,1")
    waiting(first, 2)
    first.send_signal(signal.SIGINT)
    _, err = first.communicate()
    assert first.returncode == 130
    assert "Slurm goes on with the jobs" in err
    assert sweep.states() == {"0": "queued", "1": "queued"}
    again = sweep.start(*QUICK, "seed=0,1,2")
    waiting(again, 3)
    sweep.client("scancel", blocker)
    out, err = again.communicate()
    assert again.returncode == 0, err
    assert "Slurm has 2 of these jobs already, which are not submitted again but waited for" in out
    assert "3 jobs: 3 finished" in out
    assert [sweep.job(seed)["attempts"] for seed in (0, 1, 2)] == [1, 1, 1]
    submitted = list(sweep.place.glob(".submitit/*/*/*_submitted.pkl"))
    assert len(submitted) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("launcher.partition=debgu",), ["no partition of this Slurm named 'debgu'", "'debug'"]),
        (("launcher.gpus=1",), ["asks for 1 GPUs", "has 0 at most", "launcher.gpus"]),
    ],
)
def test_what_this_slurm_does_not_have_is_refused_before_any_job_starts(sweep, words, said):
    code, _, err = sweep.run(*QUICK, "seed=0,1", *words)
    assert code == 2
    (line,) = err.splitlines()
    assert [text for text in said if text not in line] == [], line
    assert not sweep.place.exists()

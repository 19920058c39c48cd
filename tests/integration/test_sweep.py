"""Sweeps: killed, continued, failed, refused; what is done is not done again, and the index always says so."""

import csv
import json
import os
import shutil
import subprocess
import sys

import pytest

from fsr_lab.sweep.index import refresh

QUICK = ("evaluation=none", "trainer.max_epochs=1", "+trainer.limit_train_batches=3")


def rows(sweep):
    with (sweep / "index.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def states(sweep):
    return {row["seed"]: row["state"] for row in rows(sweep)}


def stamps(sweep):
    """When each job's weights were last written."""
    return {path.parent.parent.name: path.stat().st_mtime_ns for path in sweep.glob("*/checkpoints/last.ckpt")}


@pytest.fixture
def command(tiny, tmp_path):
    """Return what runs a sweep in tmp_path / "sweep": (*more overrides)."""
    return lambda *more: ("train", "-m", *tiny, *QUICK, f"hydra.sweep.dir={tmp_path / 'sweep'}", *more)


SHORT = "hydra.sweep.subdir='seed=${seed},tau=${optim.lr}'"


def test_a_killed_sweep_goes_on_where_it_was(warm, command, tmp_path):
    sweep = tmp_path / "sweep"
    assert warm.run(*command("seed=0", SHORT)).code == 0
    done = stamps(sweep)
    # one more job than before: what is finished is skipped, so that the signal hits seed 1
    reply = warm.run(*command("seed=0,1,2", SHORT), stops=[("train", 1, "SIGKILL")])
    assert reply.code == -9
    assert states(sweep) == {"0": "finished", "1": "running", "2": "queued"}  # as far as its last writer knew
    assert warm.run("report", sweep).code == 0
    assert states(sweep) == {"0": "finished", "1": "interrupted", "2": "queued"}
    reply = warm.run(*command("seed=0,1,2", SHORT))
    assert reply.code == 0, reply.err
    assert states(sweep) == {"0": "finished", "1": "finished", "2": "finished"}
    assert "3 jobs: 3 finished" in reply.out
    assert len(stamps(sweep)) == 3
    assert stamps(sweep).items() >= done.items()
    attempts = {path.parent.name[5]: json.loads(path.read_text())["attempts"] for path in sweep.glob("*/job.json")}
    assert attempts == {"0": 1, "1": 2, "2": 1}
    for row in rows(sweep):
        record = json.loads((sweep / row["directory"] / "records" / "last.json").read_text())
        assert record["attacks"] == ["clean"]
        assert 0 <= float(row["test/natural_last"]) <= 1
        assert float(row["val/robust_acc_best"]) >= float(row["val/robust_acc_last"])


def test_a_stopped_sweep_says_so_and_starts_no_further_job(warm, command, tmp_path):
    reply = warm.run(*command("seed=0,1", SHORT), stops=[("train", 1, "SIGTERM")])
    assert reply.code == 130
    assert states(tmp_path / "sweep") == {"0": "interrupted", "1": "queued"}
    assert [line for line in reply.err.splitlines() if line.startswith("fsr: interrupted; the same command")]
    assert warm.run(*command("seed=0,1", SHORT)).code == 0
    assert set(states(tmp_path / "sweep").values()) == {"finished"}


def test_what_failed_is_told_left_alone_and_run_again_when_asked(fsr, command, tmp_path, monkeypatch):
    sweep = tmp_path / "sweep"
    jobs = ("seed=0,1", "model.in_channels=3", "hydra.sweep.subdir=job${seed}", "label=row${seed}")
    trained = []

    def failing(cfg, run, *, command, overrides):
        trained.append(run.name)
        if run.name == "job0":
            print("what it was at", file=sys.stderr)
            raise broken
        return original(cfg, run, command=command, overrides=overrides)

    from fsr_lab.engine import run as engine

    original = engine.train
    for broken, code in ((OSError("the disk went away"), 2), (KeyError("a bug"), 1)):
        shutil.rmtree(sweep, ignore_errors=True)
        trained.clear()
        monkeypatch.setattr(engine, "train", failing)
        outcome = fsr(*command(*jobs))
        assert (outcome.code, trained) == (code, ["job0", "job1"])  # one failure stops no sweep
        assert states(sweep) == {"0": "failed", "1": "finished"}
        assert f"fsr: {broken}" in outcome.err
        assert ("Traceback" in outcome.err) == (code == 1)  # of our own bugs, the trace is seen
        assert f"job 0 failed: {broken}" in outcome.out
        log = (sweep / "job0" / "job.log").read_text()
        assert "what it was at" in log
        assert log.count(f"{type(broken).__name__}: ") >= 1
        assert f"    {type(broken).__name__}: {broken}" in outcome.out  # the last line of its log
        again = fsr(*command(*jobs))
        assert (again.code, len(trained)) == (code, 2)  # told again, not run again
        assert "job 0 failed" in again.out
        assert "retry=true" in again.out
        monkeypatch.setattr(engine, "train", original)
        before = stamps(sweep)
        cured = fsr(*command(*jobs, "retry=true"))
        assert cured.code == 0, cured.err
        assert states(sweep) == {"0": "finished", "1": "finished"}
        assert stamps(sweep).items() >= before.items()


def test_a_longer_training_is_another_matter_for_finished_jobs(fsr, command, tmp_path):
    place = "hydra.sweep.subdir=job${seed}"
    assert fsr(*command("seed=0", place)).code == 0
    before = stamps(tmp_path / "sweep")
    assert fsr(*command("seed=0", place, "trainer.max_epochs=2")).code == 0
    assert stamps(tmp_path / "sweep")["job0"] > before["job0"]


def test_a_job_of_another_process_is_left_to_it(fsr, command, tmp_path):
    sweep = tmp_path / "sweep"
    place = "hydra.sweep.subdir=job${seed}"
    (sweep / "job0").mkdir(parents=True)
    (sweep / "job0" / "job.json").write_text(
        json.dumps({"number": 0, "overrides": ["seed=0"], "state": "queued", "where": [0, ""]})
    )
    hold = (
        "import sys; from pathlib import Path\n"
        "from fsr_lab.engine.lock import held; from fsr_lab.sweep.job import Job\n"
        "with held(run := Path(sys.argv[1])):\n    Job.read(run).begun().write(run); print(); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", hold, sweep / "job0"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    other.stdout.readline()
    told = (sweep / "job0" / "job.json").read_bytes()
    outcome = fsr(*command("seed=0,1", place))
    assert outcome.code == 0, outcome.err
    assert states(sweep) == {"0": "running", "1": "finished"}
    assert (sweep / "job0" / "job.json").read_bytes() == told
    other.communicate()
    refresh(sweep)
    assert states(sweep) == {"0": "interrupted", "1": "finished"}


def test_a_job_that_another_sweep_has_done_meanwhile_is_not_done_again(fsr, command, tmp_path, monkeypatch):
    from fsr_lab.engine import run as engine
    from fsr_lab.sweep.job import Job

    trained = []

    def training(cfg, run, *, command, overrides):
        trained.append(run.name)
        other = run.with_name("job1")  # which another process runs to its end while this one is at the first
        Job.read(other).begun().over("failed", code=2, error="of the other process").write(other)

    monkeypatch.setattr(engine, "train", training)
    outcome = fsr(*command("seed=0,1", "hydra.sweep.subdir=job${seed}"))
    assert (outcome.code, trained) == (2, ["job0"])
    assert f"{tmp_path / 'sweep' / 'job1'} has failed meanwhile, and is left as it is" in outcome.out
    assert "job 1 failed: of the other process" in outcome.out


def test_a_disk_that_takes_no_log_stops_no_job_and_hides_no_error(fsr, command, tmp_path, monkeypatch):
    from fsr_lab.engine import run as engine

    def training(cfg, run, *, command, overrides):
        print("what it was at", flush=True)
        if run.name == "job0":
            raise OSError("the disk went away")

    monkeypatch.setattr(engine, "train", training)
    for seed in (0, 1):
        (tmp_path / "sweep" / f"job{seed}").mkdir(parents=True)
        (tmp_path / "sweep" / f"job{seed}" / "job.log").symlink_to("/dev/full")
    outcome = fsr(*command("seed=0,1", "hydra.sweep.subdir=job${seed}"))
    assert outcome.code == 2
    assert states(tmp_path / "sweep") == {"0": "failed", "1": "finished"}
    assert "fsr: the disk went away" in outcome.err
    assert outcome.out.count("what it was at") == 2


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Stand in for a Slurm that has job 12_0 until it was asked for it three times, and that takes no other."""
    answers = {
        "sinfo": "echo 'debug*|infinite|(null)'",
        "sbatch": f'echo "$1" >>{tmp_path}/asked; test "$1" = --test-only || {{ echo full >&2; exit 1; }}',
        "squeue": f"echo x >>{tmp_path}/looks; test $(wc -l <{tmp_path}/looks) -gt 3 || echo 12_0",
    }
    for name, line in answers.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr("fsr_lab.sweep.slurm_queue.PAUSE_SECONDS", 0)
    return lambda: (tmp_path / "asked").read_text().split()


def test_a_sweep_started_again_while_slurm_has_its_jobs_submits_none_twice(fsr, command, tmp_path, slurm):
    sweep, earlier = tmp_path / "sweep", tmp_path / "sweep" / ".submitit" / "1_1"
    argv = command("launcher=slurm", "hydra.sweep.subdir='seed=${seed}'")
    (earlier / "12_0").mkdir(parents=True)
    (earlier / "jobs.json").write_text('["seed=0", "seed=1"]')
    again = fsr(*argv, "seed=0")
    assert again.code == 130, again.err  # it left Slurm, and has not finished
    assert slurm() == ["--test-only"]
    assert states(sweep) == {"0": "queued"}
    assert "Slurm has 1 of these jobs already, which are not submitted again but waited for" in again.out
    assert len((tmp_path / "looks").read_text().splitlines()) == 4
    (tmp_path / "looks").unlink()
    # what Slurm does not have, seed=1 of the killed submission too, is submitted
    more = fsr(*argv, "seed=0,1,2")
    assert "full" in more.err
    assert slurm()[2] != "--test-only"
    (listed,) = [path for path in sweep.glob(".submitit/*/jobs.json") if path.parent != earlier]
    assert json.loads(listed.read_text()) == ["seed=1", "seed=2"]


WRONG = {
    "a job that does not compose": (["defense=none,fsrr"], ["no defense named 'fsrr'", "'fsr'"]),
    "a key of one option alone": (["defense=none,fsr", "defense.module.tau=0.1"], ["defense.module"]),
    "an empty list": (["seed=range(0,0)"], ["no jobs"]),
    "an empty glob": (["model=glob(nothing*)"], ["no jobs"]),
    "contradictory values": (["seed=0,1", "seed=2"], ["seed=0,1", "seed=2", "contradict"]),
    "contradictory lists": (["seed=0,1", "seed=0,2"], ["seed=0,1", "seed=0,2", "contradict"]),
    "one directory for two": (["seed=0,1", "hydra.sweep.subdir=same"], ["2 jobs", "same", "seed"]),
    "directories by number": (["seed=0,1", "hydra.sweep.subdir=${hydra:job.num}"], ["hydra:job.num", "overrides"]),
    "an unknown launcher": (["seed=0,1", "launcher=slrm"], ["no launcher named 'slrm'", "'slurm'"]),
    "jobs of two launchers": (["launcher=joblib_gpus", "launcher.cores=1,2"], ["launcher.cores", "one launcher"]),
    "more GPUs than there are": (["seed=0,1", "trainer.accelerator=gpu", "trainer.devices=999"], ["asks for 999 GPUs"]),
    "a grid of what is not there": (["hparams_search=tau_grid"], ["varies defense.module.tau", "defense=fsr"]),
    "an unknown grid": (["hparams_search=tau"], ["no hparams_search named 'tau'", "'tau_grid'"]),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_sweep_is_refused_before_any_job_starts(fsr, tiny, tmp_path, name):
    words, said = WRONG[name]
    outcome = fsr("train", "-m", *tiny, *QUICK, *words)
    line = outcome.refusal()
    assert outcome.err.splitlines() == [line]
    assert [text for text in said if text not in line] == [], line
    assert list(tmp_path.rglob("job.json")) == list(tmp_path.rglob("*.ckpt")) == []


def test_a_sweep_of_another_configuration_is_refused_before_any_job_starts(fsr, command, tmp_path):
    place = "hydra.sweep.subdir=job${seed}"
    assert fsr(*command("seed=1", place)).code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "sweep").rglob("*") if path.is_file()}
    line = fsr(*command("seed=0,1", place, "optim.lr=0.5")).refusal()
    assert "another configuration" in line
    assert "optim.lr" in line
    assert not (tmp_path / "sweep" / "job0").exists()
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (("launcher=joblib_gpus",), "joblib"),
        (("launcher=slurm",), "slurm"),
        (("launcher=ray",), "ray"),
        (("hparams_search=optuna",), "tune"),
    ],
)
def test_a_missing_package_is_named_with_what_installs_it(fsr, tiny, monkeypatch, words, extra):
    from hydra.core.config_store import ConfigStore

    repo = ConfigStore.instance().repo
    bare = {name: dict(node) if isinstance(node, dict) else node for name, node in repo["hydra"].items()}
    for group, name in (
        ("launcher", "joblib"),
        ("launcher", "submitit_slurm"),
        ("launcher", "ray"),
        ("sweeper", "optuna"),
    ):
        bare[group].pop(f"{name}.yaml", None)
    monkeypatch.setitem(repo, "hydra", bare)
    line = fsr("train", "-m", *tiny, *QUICK, "seed=0,1", *words).refusal()
    assert f"pip install 'fsr-lab[{extra}]'" in line
    assert words[0] in line


def test_a_sweeps_directories_are_named_by_the_overrides_however_many(fsr, tiny, tmp_path):
    many = [f"+claim.number{number}=a_rather_long_value_{number}" for number in range(12)]
    outcome = fsr("train", "-m", *tiny, *QUICK, *many, "seed=0,1", f"hydra.sweep.dir={tmp_path / 'sweep'}", "claim={}")
    assert outcome.code == 0, outcome.err
    found = rows(tmp_path / "sweep")
    assert len({row["directory"] for row in found}) == 2
    for row in found:
        assert len(row["directory"].encode()) <= 255
        assert (tmp_path / "sweep" / row["directory"] / "records" / "last.json").is_file()
        assert row["claim.number11"] == "a_rather_long_value_11"
        overrides = json.loads((tmp_path / "sweep" / row["directory"] / "job.json").read_text())["overrides"]
        assert f"seed={row['seed']}" in overrides
        assert set(many) <= set(overrides)

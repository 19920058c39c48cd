"""hparams_search=optuna for real: the objective, a study that survives a kill, and several processes on it."""

import csv
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.tune

TRIALS = (
    "strategy=at", "defense=fsr", "defense.module.width=4", "evaluation=none", "trainer.max_epochs=1",
    "+trainer.limit_train_batches=2", "hparams_search=optuna",
)  # fmt: skip


@pytest.fixture
def start(tiny, data, tmp_path):
    """Return the function that starts a study in tmp_path / "study": (*overrides)."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "FSR_DATA": str(data), "FSR_RUNS": str(tmp_path / "runs")}
    started = []

    def starting(*words):
        place = f"hydra.sweep.dir={tmp_path / 'study'}"
        command = [sys.executable, "-m", "fsr_lab", "train", *tiny, *TRIALS, place, *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, cwd=tmp_path, env=env, **pipes)
        started.append(process)
        return process

    yield starting
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def rows(study):
    with (study / "index.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def trials(study):
    """Return (state, value) of every trial, as the database has them."""
    with sqlite3.connect(study / "study.db") as database:
        return database.execute(
            "SELECT state, value FROM trials LEFT JOIN trial_values USING (trial_id) ORDER BY trial_id"
        ).fetchall()


def test_the_objective_is_robust_validation_accuracy(start, tmp_path):
    study = tmp_path / "study"
    process = start("hydra.sweeper.n_trials=2", "test_checkpoints=[]")
    out, err = process.communicate()
    assert process.returncode == 0, err
    values = [float(row["val/robust_acc_best"]) for row in rows(study)]
    assert [state for state, _ in trials(study)] == ["COMPLETE", "COMPLETE"]
    assert [round(value, 4) for _, value in trials(study)] == values
    assert f"Best value: {max(value for _, value in trials(study))}" in out
    for row in rows(study):
        assert 0.1 <= float(row["defense.module.lambda_sep"]) <= 5
        config = (study / row["directory"] / "config.yaml").read_text()
        assert f"tau: {row['defense.module.tau']}" in config
        assert len(row["directory"].encode()) <= 255
    # a study mixes no trials that differ in more than what it tunes
    process = start("hydra.sweeper.n_trials=1", "test_checkpoints=[]", "optim.lr=0.5", "trainer.max_epochs=2")
    _, err = process.communicate()
    assert process.returncode == 2
    (line,) = [line for line in err.splitlines() if line.startswith("fsr:")]
    assert "a study of another configuration (optim.lr: 0.1 there, 0.5 here" in line
    assert "trainer.max_epochs: 1 there, 2 here" in line
    assert len(trials(study)) == 2


def test_a_killed_study_is_taken_up_and_several_processes_share_it(start, tmp_path):
    study = tmp_path / "study"
    process = start("hydra.sweeper.n_trials=50", "trainer.max_epochs=3")
    while not (study / "index.csv").is_file() or [row["state"] for row in rows(study)][1:] != ["running"]:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = trials(study)
    assert [state for state, _ in before] == ["COMPLETE", "RUNNING"]
    both = [start("hydra.sweeper.n_trials=2", "trainer.max_epochs=3") for _ in range(2)]
    for process in both:
        _, err = process.communicate()
        assert process.returncode == 0, err
    after = trials(study)
    assert after[0] == before[0]
    assert [state for state, _ in after] == ["COMPLETE", "FAIL", *["COMPLETE"] * 4]
    assert [row["state"] for row in rows(study)] == ["finished"] * 5
    assert len({row["directory"] for row in rows(study)}) == 5
    killed = json.loads((study / rows(study)[1]["directory"] / "job.json").read_text())
    assert killed["attempts"] == 2
    assert killed["results"]["val/robust_acc_best"] in [value for _, value in after[2:]]


def test_a_failed_trial_stops_no_study(start, tmp_path):
    study = tmp_path / "study"
    process = start("hydra.sweeper.n_trials=2", "+defense.module.tua=1")
    _, err = process.communicate()
    assert process.returncode == 2
    assert [row["state"] for row in rows(study)] == ["failed", "failed"]
    assert [state for state, _ in trials(study)] == ["FAIL", "FAIL"]
    assert "Traceback" not in err
    assert "tua" in json.loads(next(study.glob("*/job.json")).read_text())["error"]


def test_trials_of_a_pool(start, tmp_path):
    process = start("hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2", "launcher=joblib_gpus")
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert len({json.loads(path.read_text())["where"][0] for path in (tmp_path / "study").glob("*/job.json")}) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("dataset.val_size=0",), "dataset.val_size is 0"),
        (("~defense.module.lambda_rec",), "defense.module.lambda_rec is to be tuned, and this configuration has none"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_any_trial(start, tmp_path, words, said):
    process = start(*words)
    _, err = process.communicate()
    assert process.returncode == 2
    (line,) = [line for line in err.splitlines() if line.startswith("fsr:")]
    assert said in line
    assert not list((tmp_path / "study").glob("*/job.json"))

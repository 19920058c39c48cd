"""What `make table1` and its like run: every job of it composes, and the ablation grids run from end to end."""

import csv
import shlex
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ABLATIONS = {"lambda": 36, "tau": 7, "layer": 6, "gumbel": 5, "yprime": 6, "map": 8}
JOBS = {"table1": 12, "table2": 12, "table3": 7, "table4": 5, "table5": 1, "table6": 6, "figure1": 2} | {
    f"ablation-{name}": count for name, count in ABLATIONS.items()
}
"""How many networks each target trains; table7 counts and trains none."""


def trainings(target, scale="smoke"):
    """Return the arguments of every `fsr train` of a target."""
    command = ["make", "--dry-run", target, f"SCALE={scale}"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = printed.replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith(".venv/bin/fsr train")]


def rows(runs):
    (index,) = runs.glob("*/index.csv")
    with index.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("scale", ["smoke", "paper"])
@pytest.mark.parametrize("target", JOBS)
def test_every_job_of_a_target_composes_and_has_a_directory_of_its_own(fsr, tmp_path, monkeypatch, target, scale):
    monkeypatch.setattr("fsr_lab.sweep.launching.run_jobs", lambda due, start: None)
    for words in trainings(target, scale):
        outcome = fsr(*words)
        assert outcome.code == 130, outcome.err  # as of a sweep that was stopped before its first job
    planned = rows(tmp_path / "runs")
    assert [row["state"] for row in planned] == ["queued"] * JOBS[target]
    assert len({row["directory"] for row in planned}) == JOBS[target]


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_runs_from_end_to_end_on_digits(fsr, tmp_path, name):
    for words in trainings(f"ablation-{name}"):
        outcome = fsr(*words)
        assert outcome.code == 0, outcome.err
    finished = rows(tmp_path / "runs")
    assert [row["state"] for row in finished] == ["finished"] * ABLATIONS[name]
    assert all(0 <= float(row["test/robust_last"]) <= float(row["test/natural_last"]) <= 1 for row in finished)
    assert f"{ABLATIONS[name]} jobs: {ABLATIONS[name]} finished" in outcome.out

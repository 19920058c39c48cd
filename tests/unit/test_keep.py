"""What experiments/keep.py takes of a run: all that a report needs, and nothing of the machine."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from records import MANIFEST, made_artefact, made_curves, made_record, made_samples, rates
from scripts import loaded

from fsr_lab.report.artefact import read_artefact

SCRIPT = Path(__file__).parents[2] / "experiments" / "keep.py"


@pytest.fixture(scope="module")
def keep():
    return loaded(SCRIPT).keep


@pytest.fixture
def place(tmp_path):
    """Return a folder with an artefact, and beside it two finished runs, one of which its manifest does not name."""
    folder = made_artefact(tmp_path / "experiments" / "table0")
    for experiment in ("table0/at", "table0/other"):
        run = tmp_path / "runs" / "cpu" / experiment / "seed=0"
        record = made_record(rates(80, 40), settings={})
        command = "fsr train experiment=table0/at hydra.run.dir=/home/me/runs/at dataset.source='/home/me/c.tar' seed=0"
        replace(record, provenance=replace(record.provenance, command=command)).save(run / "records", "last")
        made_curves(run)
        made_samples(run / "samples.npz")
        (run / "checkpoints").mkdir()
        (run / "checkpoints" / "last.ckpt").write_bytes(b"weights")
        (run / "status.json").write_text('{"state": "finished"}')
    return folder.parent


def test_what_is_kept_makes_the_same_table(keep, place):
    runs = place.parent / "runs"
    (kept,) = keep("table0", runs, ["cpu"], place)
    assert kept == place / "table0" / "records" / "cpu" / "table0" / "at" / "seed=0"
    files = {path.relative_to(kept).as_posix() for path in kept.rglob("*") if path.is_file()}
    assert files == {"records/last.json", "records/last.npz", "metrics/version_0/metrics.csv", "samples.npz"}
    ours, theirs = (read_artefact(place / "table0", source).grids[0] for source in (None, runs))
    assert [[cell.text() for cell in line.cells] for line in ours.lines] == [
        [cell.text() for cell in line.cells] for line in theirs.lines
    ]
    assert ours.is_measured


def test_nothing_names_a_folder_of_the_machine(keep, place):
    (kept,) = keep("table0", place.parent / "runs", ["cpu"], place)
    text = (kept / "records" / "last.json").read_text()
    assert "/home" not in text
    assert json.loads(text)["provenance"]["command"] == "fsr train experiment=table0/at seed=0"


def test_a_run_that_is_not_finished_is_refused(keep, place):
    (place.parent / "runs" / "cpu" / "table0" / "at" / "seed=0" / "status.json").write_text('{"state": "running"}')
    with pytest.raises(ValueError, match="is not finished; the command that began it continues it"):
        keep("table0", place.parent / "runs", ["cpu"], place)


def test_what_a_shared_artefact_keeps_is_not_kept_twice(keep, place):
    text = MANIFEST.replace("Table 0", "Table 9").replace("runs:", "shares: [table0]\nruns:")
    made_artefact(place / "table9", text)
    assert keep("table9", place.parent / "runs", ["cpu"], place) == []

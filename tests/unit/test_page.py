"""A folder's report, of records made by hand."""

from dataclasses import replace

import numpy as np
import pytest

from fsr_lab.core.provenance import Provenance
from fsr_lab.core.record import EvaluationRecord
from fsr_lab.core.threat import Threat
from fsr_lab.report.page import write_report


def record(name, **versions):
    about = Provenance(
        command="fsr train", revision="", dirty=False, versions={"torch": "2.15.0", "python": "3.11.7"} | versions,
        hashes={}, host={"processor": "a processor", "threads": "2", "accelerator": "none"}, seed=0,
    )  # fmt: skip
    return EvaluationRecord(
        attacks=("clean",), outcome=np.ones((1, 4), np.int8), margin=np.ones((1, 4), np.float32),
        norm=np.zeros((1, 4), np.float32), ids=np.arange(4), labels=np.zeros(4, np.int64),
        forwards=np.full(1, 4), backwards=np.zeros(1, np.int64), threat=Threat(norm="linf", eps="8/255"),
        precision="float32", chunk=500, settings={}, findings=(), provenance=about, name=name,
    )  # fmt: skip


@pytest.fixture
def lines(tmp_path):
    """Return the function that reports records, each in a run of its own, and gives the lines that say versions."""

    def reported(*records):
        for number, made in enumerate(records):
            made.save(tmp_path / f"run{number}" / "records", "last")
        report = write_report(tmp_path)
        return [line for line in report.path.read_text().splitlines() if line.startswith("Versions")]

    return reported


def test_versions_that_all_records_share_are_said_once(lines):
    assert lines(record("one"), record("two")) == ["Versions: python 3.11.7, torch 2.15.0."]


def test_versions_that_differ_are_said_of_the_records_that_have_them(lines):
    one = record("the same name")
    seed = replace(one, provenance=replace(one.provenance, seed=1))
    assert lines(one, record("two", torch="2.14.0"), seed) == [
        "Versions of run0/records/last, run2/records/last: python 3.11.7, torch 2.15.0.",
        "Versions of run1/records/last: python 3.11.7, torch 2.14.0.",
    ]


def test_the_machine_is_called_that_of_who_put_the_record_together(lines, tmp_path):
    lines(record("one"))
    text = (tmp_path / "report.md").read_text()
    assert "| put together on |" in text
    assert "| a processor, 2 threads, none |" in text
    assert "what this found in a ledger" in text
    assert "    fsr train\n" in text

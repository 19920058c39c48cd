"""The verdict on a run that was made again, on records made by hand."""

from dataclasses import replace

import numpy as np
import pytest

from fsr_lab.core.provenance import Provenance
from fsr_lab.core.record import EvaluationRecord
from fsr_lab.core.threat import Threat
from fsr_lab.report.reproduction import judge


def record(right, *, n=200, weights="aa", data="d", eps="8/255"):
    """Return a record of n samples, of which the first `right` withstand PGD-20; all are right unattacked."""
    outcome = np.ones((2, n), np.int8)
    outcome[1] = np.arange(n) < right
    zeros = np.zeros((2, n), np.float32)
    about = Provenance(
        command="", revision="", dirty=False, versions={}, hashes={"weights": weights, "data": data}, host={}, seed=0
    )
    return EvaluationRecord(
        attacks=("clean", "pgd20"), outcome=outcome, margin=zeros, norm=zeros, ids=np.arange(n),
        labels=np.zeros(n, np.int64), forwards=np.zeros(2, np.int64), backwards=np.zeros(2, np.int64),
        threat=Threat(norm="linf", eps=eps), precision="float32", chunk=500, settings={}, findings=(),
        provenance=about, name="mine",
    )  # fmt: skip


@pytest.fixture
def judged(tmp_path):
    """Return the function that judges two records, or none, as those of two runs."""

    def judged(first, second, same_weights=None):
        for name, kept in (("first", first), ("second", second)):
            if kept is not None:
                kept.save(tmp_path / name / "records", "last")
        told = ["a: 1 there, 2 here"]
        return judge(tmp_path / "first", tmp_path / "second", same_weights=same_weights, differences=told)

    return judged


def test_equal_weights_with_equal_outcomes_are_identical(judged, tmp_path):
    found = judged(record(100), record(100))
    assert (found.kind, len(found.comparisons)) == ("identical", 1)
    page = found.write(tmp_path).read_text()
    assert found.sentence in page
    assert "- a: 1 there, 2 here" in page
    assert "| PGD-20 | 50.00 | 50.00 | +0.00" in page


def test_equal_shares_of_other_samples_are_not_identical(judged):
    other = record(100)
    flipped = replace(other, outcome=np.stack([other.outcome[0], other.outcome[1][::-1]]))
    found = judged(record(100), flipped)
    assert found.kind == "within noise"
    assert "the same weights" in found.sentence


def test_other_weights_of_nearly_the_same_accuracy_are_within_noise(judged):
    found = judged(record(100), record(103, weights="bb"))
    assert found.kind == "within noise"
    assert "other weights; the furthest is PGD-20 by +1.50 points" in found.sentence


def test_a_difference_beyond_noise_is_told_with_its_column(judged):
    found = judged(record(100), record(150, weights="bb"))
    assert found.kind == "different"
    assert "beyond noise in PGD-20; the furthest is PGD-20 by +25.00 points" in found.sentence


def test_the_checkpoints_have_the_last_word_on_the_weights(judged):
    assert judged(record(100), record(100, weights="bb"), same_weights=True).kind == "identical"
    assert judged(record(100), record(100), same_weights=False).kind == "within noise"


@pytest.mark.parametrize("same_weights", [True, False, None])
def test_without_records_the_weights_alone_tell(judged, same_weights):
    kind = "identical" if same_weights else "not comparable"
    assert judged(None, None, same_weights).kind == kind
    assert judged(record(100), None, same_weights).kind == kind


@pytest.mark.parametrize("change", [{"data": "e"}, {"n": 100}, {"eps": "4/255"}])
def test_other_data_samples_or_threats_cannot_be_compared(judged, change):
    found = judged(record(100), record(100, **change))
    assert found.kind == "not comparable"
    assert "these records are not of the same" in found.sentence

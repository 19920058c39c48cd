"""Paired comparison: counts by hand, p and interval by other routes than the code's."""

import csv
import io
import json
from math import comb

import numpy as np
import pytest
from rich.console import Console

from fsr_lab.core.provenance import Provenance
from fsr_lab.core.record import EvaluationRecord
from fsr_lab.core.threat import Threat
from fsr_lab.report.paired import Paired, compare


def record(outcome, *, name="net", eps="8/255", data="d", ids=None, labels=None, chains=None, settings=None):
    rows = np.array(list(outcome.values()), dtype=np.int8)
    count = rows.shape[1]
    return EvaluationRecord(
        attacks=tuple(outcome), outcome=rows, margin=np.zeros(rows.shape, np.float32),
        norm=np.zeros(rows.shape, np.float32), ids=np.arange(count) if ids is None else np.array(ids),
        labels=np.zeros(count, np.int64) if labels is None else np.array(labels),
        forwards=np.zeros(len(rows), np.int64), backwards=np.zeros(len(rows), np.int64),
        threat=Threat(norm="linf", eps=eps), precision="float32", chunk=500, settings=settings or {}, findings=(),
        provenance=Provenance(
            command="", revision="", dirty=False, versions={}, hashes={"data": data}, host={}, seed=0
        ),
        name=name, chains=chains or {},
    )  # fmt: skip


def test_counts_are_of_pairs():
    one = record({"clean": [1, 1, 1, 1, 0, 0, 0], "pgd20": [1, 1, 0, 0, 0, 0, 0]}, name="AT")
    other = record({"clean": [1, 1, 1, 0, 1, 1, 0], "pgd20": [1, 0, 1, 1, 1, 0, 0], "fgsm": [0] * 7}, name="FSR")
    natural, pgd = compare(one, other).columns
    assert natural == Paired("Natural", both=3, only_first=1, only_second=2, neither=1)
    assert pgd == Paired("PGD-20", both=1, only_first=1, only_second=3, neither=2)
    assert pgd.difference == pytest.approx(2 / 7)


@pytest.mark.parametrize(("b", "c"), [(10, 2), (2, 10), (0, 5), (7, 7), (30, 45)])
def test_p_is_that_of_a_fair_coin(b, c):
    tail = sum(comb(b + c, k) for k in range(min(b, c) + 1)) / 2 ** (b + c)
    assert Paired("x", 5, b, c, 5).p == pytest.approx(min(1, 2 * tail), rel=1e-12)


def test_p_of_ten_against_two():
    assert Paired("x", 100, 10, 2, 0).p == pytest.approx(0.03857421875)  # 2 (1 + 12 + 66) / 4096


def test_without_discordant_pairs_p_is_one():
    assert Paired("x", 5, 0, 0, 5).p == 1


def test_the_interval_is_newcombes_tenth():
    # his example, also in Altman et al., Statistics with Confidence, 2nd edition, chapter 6: 20, 12, 2 and 16 of 50
    low, high = Paired("x", both=20, only_second=12, only_first=2, neither=16).interval
    assert (low, high) == (pytest.approx(0.0562, abs=5e-4), pytest.approx(0.3290, abs=5e-4))


@pytest.mark.parametrize("counts", [(20, 2, 12, 16), (0, 0, 30, 0), (50, 0, 0, 0), (3, 9, 1, 40), (0, 8, 8, 0)])
def test_exchanging_the_two_turns_the_interval_round(counts):
    both, b, c, neither = counts
    there, back = Paired("x", both, b, c, neither), Paired("x", both, c, b, neither)
    assert there.difference == -back.difference
    assert there.interval.low == pytest.approx(-back.interval.high)
    assert -1 <= there.interval.low <= there.difference <= there.interval.high <= 1
    assert there.p == pytest.approx(back.p)


def test_the_interval_covers_at_its_level():
    # exact coverage for n = 24 and cell probabilities far from the edge: between 93 and 97 percent
    n, cells = 24, (0.4, 0.1, 0.25, 0.25)
    truth, covered = cells[2] - cells[1], 0.0
    for a in range(n + 1):
        for b in range(n + 1 - a):
            for c in range(n + 1 - a - b):
                d = n - a - b - c
                weight = comb(n, a) * comb(n - a, b) * comb(n - a - b, c)
                chance = weight * cells[0] ** a * cells[1] ** b * cells[2] ** c * cells[3] ** d
                low, high = Paired("x", a, b, c, d).interval
                covered += chance * (low <= truth <= high)
    assert 0.93 < covered < 0.97


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": [1, 2]}, r"not of the same samples \(2 and 2\)"),
        ({"labels": [0, 1]}, "not of the same labels"),
        ({"data": "e"}, r"not of the same data \(d and e\)"),
        ({"eps": "4/255"}, r"not of the same threat \(linf 8/255 and linf 4/255\)"),
    ],
)
def test_records_of_other_things_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        compare(record({"clean": [1, 0]}), record({"clean": [1, 0]}, **change))


def test_chains_and_ensembles_are_compared_too():
    chain = {"autoattack": ("apgd_ce", "square")}
    one = record({"clean": [1, 1, 1, 0], "apgd_ce": [1, 0, 1, -1], "square": [1, -1, 0, -1]}, chains=chain)
    other = record({"clean": [1, 1, 1, 0], "apgd_ce": [1, 1, 1, -1], "square": [1, 1, 0, -1]}, chains=chain)
    found = {column.heading: (column.only_first, column.only_second) for column in compare(one, other).columns}
    assert found == {"Natural": (0, 0), "+APGD-CE": (0, 1), "+Square": (0, 1), "AutoAttack": (0, 1)}


def test_attacks_of_other_settings_are_left_out_and_named():
    one = record({"clean": [1, 1], "pgd20": [1, 0]}, settings={"pgd20": "PGD(steps=20)"})
    other = record({"clean": [1, 0], "pgd20": [0, 0]}, settings={"pgd20": "PGD(steps=1)"})
    comparison = compare(one, other)
    assert [column.heading for column in comparison.columns] == ["Natural"]
    assert comparison.unlike == ("PGD-20",)
    assert "left out, of other settings in the two: PGD-20" in comparison.title


def test_every_format_tells_the_same():
    one = record({"clean": [1] * 12 + [0] * 8}, name="AT")
    other = record({"clean": [1] * 10 + [0] * 5 + [1] * 5}, name="AT+FSR")
    comparison = compare(one, other)
    (row,) = csv.DictReader(io.StringIO(comparison.csv()))
    assert (row["column"], row["n"], row["only_first"], row["only_second"]) == ("Natural", "20", "2", "5")
    loaded = json.loads(comparison.json())
    assert loaded["first"] == "AT"
    assert loaded["columns"][0]["difference"] == pytest.approx(15) == pytest.approx(float(row["difference"]))
    assert loaded["columns"][0]["p"] == pytest.approx(58 / 128)  # 2 (1 + 7 + 21) / 2^7
    assert "| Natural | 60.00 | 75.00 | +15.00 [" in comparison.markdown()
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(comparison.rich())
    assert "+15.00" in console.export_text()

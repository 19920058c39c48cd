import csv
import io

import numpy as np
import pytest
from rich.console import Console

from fsr_lab.core.provenance import Provenance
from fsr_lab.core.record import EvaluationRecord, Finding
from fsr_lab.core.threat import Threat
from fsr_lab.report.table import accuracy_table

FULL = {
    "clean": [1, 1, 1, 0],
    "fgsm": [1, 1, 0, 1],
    "pgd20": [1, 1, 0, 1],
    "pgd100": [1, 0, 0, 1],
    "cw30": [1, 1, 0, 1],
}


def record(name, outcome, eps="8/255", chains=None, findings=()):
    rows = np.array(list(outcome.values()), dtype=np.int8)
    return EvaluationRecord(
        attacks=tuple(outcome),
        outcome=rows,
        margin=np.zeros(rows.shape, np.float32),
        norm=np.zeros(rows.shape, np.float32),
        ids=np.arange(rows.shape[1]),
        labels=np.zeros(rows.shape[1], np.int64),
        forwards=np.zeros(len(rows), np.int64),
        backwards=np.zeros(len(rows), np.int64),
        threat=Threat(norm="linf", eps=eps),
        precision="float32",
        chunk=500,
        settings={},
        findings=tuple(findings),
        chains=chains or {},
        provenance=Provenance(command="", revision="", dirty=False, versions={}, hashes={}, host={}, seed=0),
        name=name,
    )


@pytest.fixture
def table():
    return accuracy_table([record("AT+FSR", FULL), record("none", {"clean": [1, 0], "square": [0, 0]}, "0.1")])


def test_columns_are_all_attacks_and_both_ensembles(table):
    headings = ("Natural", "FGSM", "PGD-20", "PGD-100", "C&W", "Square", "Ensemble", "Ensemble ∧ clean")
    assert table.headings == headings
    name, threat, n, values = table.rows[0]
    assert (name, threat, n) == ("AT+FSR", "linf 8/255", 4)
    counts = [None if value is None else value.correct for value in values]
    assert counts == [3, 3, 3, 2, 3, None, 2, 1]
    assert [value is None for value in table.rows[1][3]] == [False, True, True, True, True, False, True, True]


def test_markdown_has_one_line_per_model(table):
    lines = table.markdown().splitlines()
    assert lines[0] == (
        "| model | threat | n | Natural | FGSM | PGD-20 | PGD-100 | C&W | Square | Ensemble | Ensemble ∧ clean |"
    )
    assert lines[1] == "|---|---|--:|" + "--:|" * 8
    # Wilson's interval of 3 of 4, 2 of 4 and 1 of 4
    three, two, one = "75.00 [30.1, 95.4]", "50.00 [15.0, 85.0]", "25.00 [4.6, 69.9]"
    assert lines[2] == f"| AT+FSR | linf 8/255 | 4 | {three} | {three} | {three} | {two} | {three} |  | {two} | {one} |"
    assert lines[3] == "| none | linf 0.1 | 2 | 50.00 [9.5, 90.5] |  |  |  |  | 0.00 [0.0, 65.8] |  |  |"
    assert lines[4] == ""
    assert lines[5] == table.note
    assert "Wilson's 95 % interval" in table.note
    assert "(Eq. 6)" in table.note


def test_csv_has_one_line_per_value(table):
    rows = list(csv.DictReader(io.StringIO(table.csv())))
    assert len(rows) == 7 + 2
    assert rows[3] == {
        "model": "AT+FSR", "threat": "linf 8/255", "column": "PGD-100", "correct": "2", "n": "4",
        "percent": "50.0000", "low": "15.0039", "high": "84.9961", "marks": "",
    }  # fmt: skip
    assert {row["column"] for row in rows if row["model"] == "none"} == {"Natural", "Square"}


def test_a_terminal_shows_every_value(table):
    stream = io.StringIO()
    Console(file=stream, width=160, color_system=None).print(table.rich())
    text = stream.getvalue()
    for shown in ("AT+FSR", "linf 8/255", "75.00", "30.1–95.4", "PGD-100", "Ensemble ∧ clean", "65.8"):
        assert shown in text


def test_a_terminal_shows_a_name_with_brackets():
    stream = io.StringIO()
    Console(file=stream, width=160, color_system=None).print(accuracy_table([record("net [a/last]", FULL)]).rich())
    assert "│ net [a/last] │" in stream.getvalue()


def test_without_the_four_attacks_there_is_no_ensemble():
    table = accuracy_table([record("quick", {key: FULL[key] for key in ("clean", "fgsm", "pgd20")})])
    assert table.headings == ("Natural", "FGSM", "PGD-20")
    assert "Ensemble" not in table.markdown()


def test_samples_not_run_count_as_lost_in_the_ensemble_only_where_another_attack_won():
    sparse = {name: list(row) for name, row in FULL.items()}
    sparse["cw30"] = [1, -1, -1, 1]  # the two that pgd100 won
    values = accuracy_table([record("sparse", sparse)]).rows[0][3]
    assert [value.correct for value in values[-2:]] == [2, 1]


def test_no_record_is_refused():
    with pytest.raises(ValueError, match="no evaluation record to make a table of; run fsr train or fsr evaluate"):
        accuracy_table([])


AUTOATTACK = {"autoattack": ("apgd_ce", "apgd_t", "square")}
LEFT = {
    "clean": [1, 1, 1, 1, 0],
    "apgd_ce": [1, 1, 1, 0, -1],
    "apgd_t": [1, 1, 0, -1, -1],
    "square": [1, 0, -1, -1, -1],
}


def counts(table, row=0):
    return {
        heading: None if value is None else value.correct
        for heading, value in zip(table.headings, table.rows[row].values, strict=True)
    }


def test_a_chains_members_show_what_is_left_after_them():
    table = accuracy_table([record("net", LEFT, chains=AUTOATTACK)])
    assert counts(table) == {"Natural": 4, "+APGD-CE": 3, "+APGD-T": 2, "+Square": 1, "AutoAttack": 1}
    assert [row["column"] for row in table.plain()] == list(table.headings)


def test_what_is_for_reading_has_the_whole_chain_alone():
    table = accuracy_table([record("net", LEFT, chains=AUTOATTACK)])
    assert table.markdown().splitlines()[0] == "| model | threat | n | Natural | AutoAttack |"
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table.rich())
    said = console.export_text()
    assert "AutoAttack" in said
    assert "+Square" not in said
    assert "what each of them left stands under What broke each sample" in table.note


def test_an_attack_alone_and_in_a_chain_are_two_columns():
    alone = record("alone", {"clean": [1, 1], "apgd_ce": [0, 1]})
    chained = record("chained", {"clean": [0, 1], "apgd_ce": [-1, 0]}, chains={"autoattack": ("apgd_ce",)})
    table = accuracy_table([alone, chained])
    assert table.headings == ("Natural", "APGD-CE", "+APGD-CE", "AutoAttack")
    assert [[value and value.correct for value in row.values] for row in table.rows] == [
        [2, 1, None, None], [1, None, 0, 0],
    ]  # fmt: skip


def test_an_ensemble_of_attacks_not_run_everywhere_has_one_convention():
    outcome = {
        "clean": [1, 1, 0], "fgsm": [1, 1, -1], "pgd20": [1, 0, -1], "pgd100": [1, -1, -1], "cw30": [1, -1, -1]
    }  # fmt: skip
    chains = {"worst case": ("fgsm", "pgd20", "pgd100", "cw30")}
    found = counts(accuracy_table([record("early", outcome, chains=chains)]))
    assert "Ensemble" not in found
    assert found["Ensemble ∧ clean"] == found["Worst case"] == 1


def test_an_ensemble_that_another_attack_left_open_has_no_number():
    outcome = {
        "clean": [1, 1, 0], "strong": [0, 1, -1], "fgsm": [-1, 1, -1], "pgd20": [-1, 1, -1], "pgd100": [-1, 1, -1],
        "cw30": [-1, 0, -1],
    }  # fmt: skip
    chains = {"worst case": ("strong", "fgsm", "pgd20", "pgd100", "cw30")}
    found = counts(accuracy_table([record("early", outcome, chains=chains)]))
    assert found["Worst case"] == 0
    assert {"Ensemble", "Ensemble ∧ clean"}.isdisjoint(found)


def finding(verdict, *attacks):
    return Finding("some check", verdict, 1.0, "something is wrong", attacks)


def marked(*findings, outcome=FULL, chains=None):
    table = accuracy_table([record("net", outcome, findings=findings, chains=chains)])
    values = zip(table.headings, table.rows[0].values, strict=True)
    return table, [heading for heading, value in values if value.is_doubtful]


def test_a_failed_check_marks_every_number():
    table, headings = marked(finding("pass"), finding("fail"))
    assert headings == list(table.headings)
    assert "75.00† [30.1, 95.4]" in table.markdown()
    assert {row["marks"] for row in csv.DictReader(io.StringIO(table.csv()))} == {"†"}
    assert {row["marks"] for row in table.plain()} == {"†"}
    assert "a check of this evaluation failed" in table.note
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table.rich())
    assert "75.00†" in console.export_text()


def test_a_failed_check_of_one_attack_marks_what_rests_on_it():
    assert marked(finding("fail", "pgd100"))[1] == ["PGD-100", "Ensemble", "Ensemble ∧ clean"]
    assert marked(finding("fail", "apgd_t"), outcome=LEFT, chains=AUTOATTACK)[1] == [
        "+APGD-T", "+Square", "AutoAttack",
    ]  # fmt: skip


def test_a_warning_marks_nothing():
    table, headings = marked(finding("warn"), finding("warn", "fgsm"))
    assert headings == []
    assert "†" not in table.markdown()

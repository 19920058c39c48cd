"""Families, chains after chains and limits in a report, from records made by hand."""

import json

import numpy as np
import pytest

from fsr_lab.core.provenance import Provenance
from fsr_lab.core.record import Asked, EvaluationRecord, Finding
from fsr_lab.core.threat import Threat
from fsr_lab.report.breakers import NOTE, breakers, first_breakers, longest_chain
from fsr_lab.report.page import write_report
from fsr_lab.report.paired import compare
from fsr_lab.report.table import accuracy_table

BEFORE = ("fgsm", "pgd20", "apgd_ce")
ASKED = {
    "autoattack": Asked((), ("apgd_ce",)),
    "a1": Asked(BEFORE, ("a1",)),
    "a2": Asked((*BEFORE, "a1"), ("a2",)),
    "adaptive": Asked((*BEFORE, "a1", "a2"), ()),
}
WITH_MASK = {
    "clean": [1, 1, 1, 1, 1, 1, 0], "fgsm": [1, 1, 1, 1, 1, 0, 1], "pgd20": [1, 1, 1, 1, 1, 0, 1],
    "apgd_ce": [1, 1, 1, 1, 0, 0, -1], "a1/low": [1, 1, 1, 0, -1, -1, -1], "a1/high": [1, 1, 0, -1, -1, -1, -1],
    "a2/x": [1, 0, -1, -1, -1, -1, -1], "a2/y": [1, -1, -1, -1, -1, -1, -1],
}  # fmt: skip
WITHOUT = {name: row for name, row in WITH_MASK.items() if not name.startswith("a1")} | {
    "apgd_ce": [1, 1, 1, 0, 0, 0, -1], "a2/x": [1, 1, 0, -1, -1, -1, -1], "a2/y": [1, 1, -1, -1, -1, -1, -1],
}  # fmt: skip
SKIPPED = Finding("concerns", "skip", 2, "a1 is left out: no defence of the network files 'mask'", ("a1",))
SETTINGS = {name: f"Attack({name})" for name in WITH_MASK if name != "clean"}


def record(outcome=WITH_MASK, *, name="AT+FSR", asked=ASKED, findings=(), limits=None, settings=SETTINGS, chunk=500):
    rows = np.array(list(outcome.values()), dtype=np.int8)
    kept = {name: each for name, each in asked.items() if not each.own or members(outcome, each.own)}
    return EvaluationRecord(
        attacks=tuple(outcome), outcome=rows, margin=np.zeros(rows.shape, np.float32),
        norm=np.zeros(rows.shape, np.float32), ids=np.arange(rows.shape[1]) + 10,
        labels=np.zeros(rows.shape[1], np.int64), forwards=10 * np.arange(len(rows)), backwards=np.arange(len(rows)),
        threat=Threat(norm="linf", eps="8/255"), precision="float32", chunk=chunk, settings=settings,
        findings=tuple(findings), asked=kept,
        chains={name: members(outcome, each.before + each.own) for name, each in kept.items()},
        limits=limits or {}, name=name,
        provenance=Provenance.collect(command="fsr evaluate", seed=0, hashes={}),
    )  # fmt: skip


def members(outcome, names):
    return tuple(attack for name in names for attack in outcome if attack == name or attack.startswith(f"{name}/"))


def counts(table, row=0):
    return {
        heading: None if value is None else value.correct
        for heading, value in zip(table.headings, table.rows[row].values, strict=True)
    }


def test_a_family_is_one_cumulative_column():
    assert counts(accuracy_table([record()])) == {
        "Natural": 6, "FGSM": 6, "PGD-20": 6, "+APGD-CE": 4, "AutoAttack": 4, "+A1": 2, "+A2": 1,
        "Adaptive worst case": 1,
    }  # fmt: skip


def test_the_order_of_the_columns_is_that_of_the_work_on_disk_too(tmp_path):
    made = record()
    loaded = EvaluationRecord.load(made.save(tmp_path, "it"))
    assert list(loaded.chains) != list(made.chains)
    assert accuracy_table([loaded]).headings == accuracy_table([made]).headings


def test_families_within_a_chain_are_columns_of_it():
    asked = {"adaptive": Asked(BEFORE[:2], ("apgd_ce", "a1", "a2"))}
    asked |= {"a1": Asked(BEFORE, ("a1",)), "a2": Asked((*BEFORE, "a1"), ("a2",))}
    assert counts(accuracy_table([record(asked=asked)])) == {
        "Natural": 6, "FGSM": 6, "PGD-20": 6, "+APGD-CE": 4, "+A1": 2, "+A2": 1, "Adaptive worst case": 1,
    }  # fmt: skip


def test_a_family_that_is_a_part_of_no_other_chain_is_shown():
    outcome = {name: WITH_MASK[name] for name in ("clean", "apgd_ce", "a2/x", "a2/y")}
    table = accuracy_table([record(outcome, asked={"a2": Asked((), ("a2",))})])
    assert table.markdown().splitlines()[0] == "| model | threat | n | Natural | APGD-CE | +A2 |"
    assert " +: what is right and withstands it" in table.note
    assert "What broke" not in table.note


def test_two_networks_share_the_columns_whatever_concerned_them():
    table = accuracy_table([record(), record(WITHOUT, name="AT", findings=[SKIPPED])])
    assert table.headings == accuracy_table([record()]).headings
    assert counts(table, 1) == {
        "Natural": 6, "FGSM": 6, "PGD-20": 6, "+APGD-CE": 3, "AutoAttack": 3, "+A1": None, "+A2": 2,
        "Adaptive worst case": 2,
    }  # fmt: skip


def test_two_networks_are_compared_under_all_that_concerned_each():
    comparison = compare(record(WITHOUT, name="AT"), record())
    found = {column.heading: (column.only_first, column.only_second) for column in comparison.columns}
    assert (found["+A2"], found["Adaptive worst case"]) == ((1, 0), (1, 0))
    assert "+A1" not in found
    assert comparison.unlike == ()


def test_what_was_asked_otherwise_is_not_compared():
    other = SETTINGS | {"a1/low": "Attack(another)"}
    assert compare(record(WITHOUT, name="AT", settings=other), record()).unlike == ("+A2", "Adaptive worst case")
    limited = compare(record(limits={"a2": 9}), record())
    assert limited.unlike == ("+A2", "Adaptive worst case")
    alike = {"limits": {"a2": 9}}
    assert compare(record(**alike), record(**alike)).unlike == ()
    assert compare(record(**alike, chunk=50), record(**alike)).unlike == ("+A2", "Adaptive worst case")


def test_what_a_familys_transfer_attacks_craft_on_may_be_each_networks_own():
    first, second = (
        SETTINGS | {"a2/x": f"Transfer(source=<{kin}, weights {kin}>, attack=PGD(steps=50))"} for kin in ("AT", "FSR")
    )
    comparison = compare(record(settings=first), record(settings=second))
    assert "Adaptive worst case" in {column.heading for column in comparison.columns}
    assert comparison.unlike == ()
    stronger = {name: text.replace("steps=50", "steps=99") for name, text in second.items()}
    assert compare(record(settings=first), record(settings=stronger)).unlike == ("+A2", "Adaptive worst case")
    # by itself, as in Table 3, a transfer attack is one test where it is from one network
    alone = [SETTINGS | {"fgsm": settings["a2/x"]} for settings in (first, second)]
    assert compare(*(record(settings=settings) for settings in alone)).unlike[0] == "FGSM"


def test_a_skipped_check_marks_no_number():
    table = accuracy_table([record(WITHOUT, findings=[SKIPPED])])
    assert not any(value.is_doubtful for value in table.rows[0].values)


EVERY = ["Natural", "FGSM", "PGD-20", "+APGD-CE", "AutoAttack", "+A1", "+A2", "Adaptive worst case"]


@pytest.mark.parametrize(
    ("finding", "marked"),
    [
        (Finding("gradients", "fail", 1.0, "zero"), ["FGSM", "PGD-20", "+APGD-CE", "AutoAttack"]),
        (Finding("gradient-free", "fail", 0.1, "Square is ahead", ("pgd20",)), ["PGD-20", "+APGD-CE", "AutoAttack"]),
        (Finding("train-mode", "fail", 1.0, "a layer is in training mode"), EVERY),
        (Finding("noise", "fail", 0.5, "half of the predictions change from call to call"), EVERY),
    ],
)  # fmt: skip
def test_gradients_that_mislead_doubt_what_rests_on_them_alone(finding, marked):
    asked = ASKED | {"autoattack": Asked(("pgd20",), ("apgd_ce",))}
    table = accuracy_table([record(asked=asked, findings=(finding,))])
    values = zip(table.headings, table.rows[0].values, strict=True)
    assert [heading for heading, value in values if value.is_doubtful] == marked


def test_a_limit_is_told_under_the_table():
    said = "A2 on at most 9 of the samples left in each chunk"
    table = accuracy_table([record(limits={"a2": 9}), record(WITHOUT, name="AT")])
    assert f" {said} of AT+FSR; the others count as withstanding it." in table.note
    both = accuracy_table([record(limits={"a2": 9}), record(WITHOUT, name="AT", limits={"a2": 9})])
    assert f" {said}; the others" in both.note
    only = accuracy_table([record(limits={"a1": 9}), record(WITHOUT, name="AT")])
    assert " A1 on at most 9 of the samples left in each chunk; the others" in only.note
    assert "at most" not in accuracy_table([record()]).note


def test_each_sample_counts_with_the_first_that_broke_it():
    made = record()
    assert longest_chain(made) == "adaptive"
    assert first_breakers(made, "adaptive") == [None, "a2/x", "a1/high", "a1/low", "apgd_ce", "fgsm", "clean"]
    assert breakers([made, record({"clean": [1, 0]}, asked={}, settings={})]) == (
        "AT+FSR, Adaptive worst case:\n\n"
        "| attack | broke first, of 7 | left |\n"
        "|---|--:|--:|\n"
        "| wrong unattacked | 1 | 6 |\n"
        "| FGSM | 1 | 5 |\n"
        "| APGD-CE | 1 | 4 |\n"
        "| A1 (low 1, high 1) | 2 | 2 |\n"
        "| A2 (x 1) | 1 | 1 |\n"
        "\n"
        "None that was left to them: PGD-20.\n"
        "\n" + NOTE
    )


def test_without_a_chain_there_is_nothing_to_tell():
    made = record({"clean": [1, 0], "fgsm": [0, 0]}, asked={}, settings={})
    assert (longest_chain(made), breakers([made])) == (None, "")


@pytest.fixture
def page(tmp_path):
    record(limits={"a2": 9}).save(tmp_path / "one" / "records", "evaluation")
    record(WITHOUT, name="AT", findings=[SKIPPED, Finding("labels", "pass", 0, "fine")]).save(
        tmp_path / "two" / "records", "evaluation"
    )
    record({"clean": [1]}, name="none", asked={}, settings={}).save(tmp_path / "three" / "records", "evaluation")
    write_report(tmp_path)
    return tmp_path


def test_the_page_has_all_of_it(page):
    text = (page / "report.md").read_text()
    assert "## What broke each sample\n\nAT+FSR, Adaptive worst case:\n\n| attack |" in text
    assert "| A2 on at most 9 of the samples left in each chunk (x 1) | 1 | 1 |" in text
    assert "AT: all 1 checks passed.\n" in text
    assert "Not run, as they do not concern the network:\n\n- a1 is left out: no defence of the network files" in text
    assert "### concerns\n\nMeasured: how many of the attacks asked for" in text
    assert "| model | FGSM | PGD-20 | APGD-CE | A1 | A2 | crafted in |" in text
    # 40 + 50 forwards of A1's two, and 60 + 70 of A2's, of 7 samples
    assert "| AT+FSR | 1.4 + 0.1 | 2.9 + 0.3 | 4.3 + 0.4 | 12.9 + 1.3 | 18.6 + 1.9 | float32 |" in text


def test_the_machine_reads_who_broke_whom(page):
    told = {each["model"]: each for each in json.loads((page / "table.json").read_text())["records"]}
    assert told["AT+FSR"]["first_broken_by"] == {
        "chain": "adaptive",
        "samples": {
            "10": None, "11": "a2/x", "12": "a1/high", "13": "a1/low", "14": "apgd_ce", "15": "fgsm", "16": "clean",
        },
    }  # fmt: skip
    assert told["AT+FSR"]["limits"] == {"a2": 9}
    assert told["none"]["first_broken_by"] is None

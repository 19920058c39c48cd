"""The verdict's rules on records made by hand: each alone, at its limit and one sample above."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from fsr_lab.core.attack_kinds import adaptive_families
from fsr_lab.core.explain import explanation
from fsr_lab.core.provenance import Provenance
from fsr_lab.core.record import CLEAN, EvaluationRecord, Finding
from fsr_lab.core.threat import Threat
from fsr_lab.evaluation.doctor import DEEP, EXAMINATION, REVIEW, review
from fsr_lab.report.columns import SIGNS
from fsr_lab.report.doctor import told
from fsr_lab.report.interval import wilson
from fsr_lab.report.page import write_report
from fsr_lab.report.table import accuracy_table
from fsr_lab.report.verdict import rules_table, verdict, verdict_of_checks
from fsr_lab.report.verdict_rules import RULES

N = 1000
SETTINGS = {
    "fgsm": "PGD(steps=1)", "pgd10": "PGD(steps=10)", "pgd20": "PGD(steps=20)", "apgd": "APGD(steps=100)",
    "square": "Square(queries=5000)", "nattack": "NAttack(queries=1)", "spsa": "SPSA(steps=100)",
    "transfer": "Transfer(source=<at>, attack=PGD(steps=100))", "joint": "APGD(objective=Joint, steps=100)",
    "softened": "PGD(view=AlongRoute, steps=100)",
}  # fmt: skip
"""By the last part of an attack's name."""
NOT_TESTED = "not tested: no adaptive attack was run; give evaluation=adaptive"


def record(wrong, chains=None, findings=(), n=N):
    """Return a record in which attacks break these samples, of those that attacks before them in a chain leave.

    Of n samples the last tenth is wrong unattacked. A sample that is settled was not run.
    """
    chains = {name: tuple(chain) for name, chain in (chains or {}).items()}
    names = (CLEAN, *wrong)
    outcome = np.ones((len(names), n), dtype=np.int8)
    outcome[0, n - n // 10 :] = 0
    for name, row in zip(names[1:], outcome[1:], strict=True):
        row[list(wrong[name])] = 0
    for chain in chains.values():
        settled = outcome[0] == 0
        for name in chain:
            row = outcome[names.index(name)]
            row[settled] = -1
            settled = settled | (row == 0)
    return EvaluationRecord(
        attacks=names, outcome=outcome, margin=np.zeros(outcome.shape, np.float32),
        norm=np.zeros(outcome.shape, np.float32), ids=np.arange(n), labels=np.zeros(n, np.int64),
        forwards=np.zeros(len(names), np.int64), backwards=np.zeros(len(names), np.int64),
        threat=Threat(norm="linf", eps="8/255"), precision="float32", chunk=500,
        settings={name: SETTINGS[name.rpartition("/")[2]] for name in names[1:]},
        findings=tuple(findings), chains=chains, name="it",
        provenance=Provenance(command="", revision="", dirty=False, versions={}, hashes={}, host={"processor": "",
        "threads": 1, "accelerator": ""}, seed=0),
    )  # fmt: skip


AA = {"apgd": range(400, 900), "square": range(396, 400)}
CHAIN = {"autoattack": ("apgd", "square")}
"""AutoAttack leaves the first 396 of 1000; its own square is no sign by the verdict's rules."""


def judged(*args, **options):
    """Return a verdict's kind, and its signs: (rule, share)."""
    found = verdict(record(*args, **options))
    assert found.sentence.startswith(f"{found.kind}: ")
    assert "\n" not in found.sentence
    return found.kind, [(evidence.rule, round(evidence.share, 6)) for evidence in found.evidence if evidence.is_sign]


def test_without_adaptive_attacks_nothing_is_tested():
    assert verdict(record({})).sentence == NOT_TESTED
    assert verdict(record({"pgd20": range(400, 900)})).sentence == NOT_TESTED
    assert verdict(record(AA, CHAIN)).sentence == NOT_TESTED
    assert verdict(record({}, n=0)).sentence == NOT_TESTED
    assert judged({"a1/joint": ()}, {"a1": ("a1/joint",)}, n=0)[0] == "not tested"


def test_adaptive_attacks_that_take_little_are_no_sign():
    found = verdict(record(AA | {"a1/joint": range(3)}, CHAIN | {"a1": ("apgd", "square", "a1/joint")}))
    assert found.kind == "no sign of masking"
    assert found.sentence == (
        "no sign of masking: of the 396 samples that AutoAttack leaves, the adaptive attacks break 3 (0.3% of all, a1 "
        "alone 3), no more than 3.0%, half of the interval"
    )
    assert [evidence.rule for evidence in found.evidence] == ["adaptive"]
    nothing = verdict(record(AA | {"a1/joint": ()}, CHAIN | {"a1": ("apgd", "square", "a1/joint")}))
    assert "the adaptive attacks break 0 (0.0% of all), no more than" in nothing.sentence


def test_where_autoattack_leaves_none_the_verdict_says_so():
    found = verdict(
        record({"apgd": range(900), "a1/joint": range(900)}, {"autoattack": ["apgd"], "all": ["apgd", "a1/joint"]})
    )
    assert found.sentence == "no sign of masking: AutoAttack leaves none of the 1000 samples to the adaptive attacks"


@pytest.mark.parametrize(
    "chains",
    [
        {"a1": ("a1/joint",)},  # after AutoAttack by the order of the record alone
        {"a1": ("apgd", "square", "a1/joint")},  # the whole order
        {"all": ("apgd", "square", "a1/joint")},
        {},  # run on all samples
    ],
)
def test_an_adaptive_family_may_take_half_of_the_interval(chains):
    low, high = wilson(396, N)
    limit = int(N * (high - low) / 2)  # 30 of 1000
    assert limit == 30
    for taken, kind in ((limit, "no sign of masking"), (limit + 1, "masked")):
        found = verdict(record(AA | {"a1/joint": range(taken)}, CHAIN | chains))
        assert found.kind == kind
    assert found.sentence == (
        "masked: of the 396 samples that AutoAttack leaves, the adaptive attacks break 31 (3.1% of all, a1 alone 31), "
        "more than 3.0%, half of the interval"
    )


def test_a_chain_of_a_familys_name_is_one_whatever_its_attacks_are_called():
    made = record(AA | {"joint": range(40)}, CHAIN | {"a1": ("apgd", "square", "joint")})
    assert adaptive_families(made) == {"a1": ("joint",)}
    assert verdict(made).kind == "masked"
    assert adaptive_families(record(AA | {"a3/joint": (), "softened": ()}, {"a10": ("softened",), **CHAIN})) == {
        "a3": ("a3/joint",), "a10": ("softened",),
    }  # fmt: skip
    assert adaptive_families(record(AA, CHAIN | {"b1": ("apgd",)})) == {}


def test_families_count_together():
    parts = {"a1/joint": range(20), "a2/softened": range(20, 36)}
    chains = CHAIN | {"a1": ("apgd", "square", "a1/joint"), "a2": ("apgd", "square", "a2/softened")}
    kind, signs = judged(AA | parts, chains)
    assert (kind, signs) == ("masked", [("adaptive", 0.036)])
    assert "break 36 (3.6% of all, a1 alone 20)" in verdict(record(AA | parts, chains)).sentence
    same = {"a1/joint": range(20), "a2/softened": range(20)}
    assert judged(AA | same, chains) == ("no sign of masking", [])


def test_of_many_samples_a_point_is_the_least():
    n = 100_000
    wrong = {"apgd": range(40_000, 90_000), "a1/joint": range(1000)}
    assert judged(wrong, {"autoattack": ("apgd",)}, n=n)[0] == "no sign of masking"
    wrong["a1/joint"] = range(1001)
    found = verdict(record(wrong, {"autoattack": ("apgd",)}, n=n))
    assert found.sentence.endswith("more than 1%")
    assert found.kind == "masked"


def test_without_autoattack_the_gradient_attacks_are_what_adaptive_ones_are_compared_with():
    pgd = {"pgd20": range(400, 900)}
    found = verdict(record(pgd | {"a1/joint": range(31)}))
    assert found.kind == "masked"
    assert "of the 400 samples that the gradient attacks leave" in found.sentence
    assert judged(pgd | {"a1/joint": range(30)})[0] == "no sign of masking"


@pytest.mark.parametrize("weak", [{}, {"fgsm": range(400, 900)}, {"pgd10": range(400, 900)}, {"square": range(900)}])
def test_there_must_be_something_to_compare_with(weak):
    found = verdict(record(weak | {"a1/joint": range(400)}))
    assert found.sentence == (
        "not tested: there is no AutoAttack to compare the adaptive attacks with; give evaluation=adaptive"
    )


def test_what_was_run_behind_an_adaptive_attack_is_nothing_to_compare_it_with():
    wrong = {"a1/joint": range(200), "pgd20": range(400, 900)}
    assert judged(wrong, {"worst case": ("a1/joint", "pgd20")}) == ("not tested", [])
    assert judged(wrong, {"worst case": ("pgd20", "a1/joint")}) == ("masked", [("adaptive", 0.2)])


@pytest.mark.parametrize("name", ["transfer", "a7/transfer"])
def test_a_transfer_attack_may_break_one_percent_of_what_is_left(name):
    white = {"pgd20": range(400, 900)}
    assert judged(white | {name: range(4)})[1] == []  # of 400
    kind, signs = judged(white | {name: range(5)})
    assert (kind, signs[0]) == ("masked", ("transfer", 0.0125))
    assert verdict(record(white | {name: range(5)})).sentence == (
        f"masked: the transfer attack {name} breaks 1.2% of the samples that the white-box attacks before it leave "
        "(5 of 400)"
    )


def test_one_sample_is_luck_for_a_transfer_attack():
    white = {"pgd20": range(40, 90)}
    assert judged(white | {"transfer": range(1)}, n=100)[1] == []  # 2.5% of 40
    assert judged(white | {"transfer": range(2)}, n=100)[1] == [("transfer", 0.05)]


@pytest.mark.parametrize(
    "chains",
    [
        {"a7": ("a7/transfer",)},
        {"a7": ("apgd", "square", "a7/transfer")},
        {"worst case": ("apgd", "square", "a1/joint", "a7/transfer")},
    ],
)
def test_in_a_chain_it_is_compared_with_what_it_saw(chains):
    chains = CHAIN | chains
    for taken in (3, 5):
        wrong = AA | {"a1/joint": range(386, 396), "a7/transfer": range(taken)}
        seen = 386 if "worst case" in chains else 396 if len(chains["a7"]) > 1 else 400
        found = [e for e in verdict(record(wrong, chains)).evidence if e.rule == "transfer"]
        assert found[0].share == pytest.approx(taken / seen)
        assert found[0].is_sign == (taken == 5)
    # attacks of its own family's chain that see the network count as well
    wrong = AA | {"a7/joint": range(390), "a7/transfer": range(396)}
    found = verdict(record(wrong, CHAIN | {"a7": ("apgd", "square", "a7/joint", "a7/transfer")}))
    assert [e.share for e in found.evidence if e.rule == "transfer"] == [1.0]
    assert "(6 of 6)" in next(e.text for e in found.evidence if e.rule == "transfer")


def test_what_comes_behind_a_transfer_attack_does_not_speak_for_it():
    wrong = {"transfer": range(50), "pgd20": range(50, 900)}
    assert judged(wrong, {"worst case": ("transfer", "pgd20")}) == ("not tested", [])
    assert judged(wrong, {"worst case": ("pgd20", "transfer")})[1] == [("transfer", 1.0)]
    assert judged({"fgsm": range(400, 900), "transfer": range(300)}) == ("not tested", [])  # one step is no attack


@pytest.mark.parametrize("name", ["nattack", "spsa", "a10/square", "a10/spsa"])
def test_an_attack_by_queries_may_take_a_point_beyond_autoattack(name):
    assert judged(AA | {name: range(10)}, CHAIN)[1] == []
    kind, signs = judged(AA | {name: range(11)}, CHAIN)
    assert (kind, signs) == ("masked", [("gradient-free", 0.011)])
    assert verdict(record(AA | {name: range(11)}, CHAIN)).sentence == (
        f"masked: {name}, which needs no gradient, breaks 11 of the 396 samples that AutoAttack leaves (1.1% of all)"
    )


def test_one_sample_is_luck_for_an_attack_by_queries():
    wrong = {"apgd": range(20, 45)}
    assert judged(wrong | {"nattack": range(1)}, {"autoattack": ("apgd",)}, n=50)[1] == []
    assert judged(wrong | {"nattack": range(2)}, {"autoattack": ("apgd",)}, n=50)[1] == [("gradient-free", 0.04)]


def test_autoattacks_own_square_is_part_of_it():
    wrong = AA | {"square": range(300, 400)}
    assert judged(wrong, CHAIN) == ("not tested", [])


def test_queries_are_compared_with_what_saw_the_same_samples_and_is_no_single_step():
    wrong = {"nattack": range(200), "pgd20": range(400, 900)}
    assert judged(wrong, {"worst case": ("nattack", "pgd20")}) == ("not tested", [])
    assert judged(wrong, {"worst case": ("pgd20", "nattack")})[1] == [("gradient-free", 0.2)]
    assert judged({"nattack": range(200), "fgsm": range(400, 900)}) == ("not tested", [])


@pytest.mark.parametrize("check", SIGNS)
def test_a_failed_check_is_a_sign_and_a_warning_is_none(check):
    failed = Finding(check, "fail", 0.1234, "what it is", ("pgd20",))
    found = verdict(record({"pgd20": range(400, 900)}, findings=[failed]))
    assert found.sentence == f"masked: the check {check} fails with 0.123: what it is"
    assert verdict_of_checks([failed]).sentence == found.sentence
    for sound in ("pass", "warn"):
        assert judged({"pgd20": ()}, findings=[failed._replace(verdict=sound)]) == ("not tested", [])
    assert "no check speaks of masking" in verdict_of_checks([failed._replace(verdict="warn")]).sentence


def test_checks_of_other_things_are_no_sign():
    others = {*EXAMINATION, *DEEP, *REVIEW} - set(SIGNS)
    assert "images" in others
    assert set(SIGNS) <= {*EXAMINATION, *DEEP, *REVIEW}
    assert judged({}, findings=[Finding(check, "fail", 1, "") for check in sorted(others)]) == ("not tested", [])


def test_queries_that_beat_a_single_step_are_no_sign():
    failed = Finding("gradient-free", "fail", 0.1, "", ("fgsm",))
    assert judged({"fgsm": (), "square": ()}, findings=[failed]) == ("not tested", [])


def test_the_strongest_evidence_speaks():
    wrong = AA | {"nattack": range(12), "transfer": range(40), "a1/joint": range(62)}
    findings = [Finding("noise", "fail", 0.5, "chance"), Finding("gradients", "fail", 0.9, "zero")]
    found = verdict(record(wrong, CHAIN, findings))
    assert [evidence.rule for evidence in found.evidence] == [
        "transfer",
        "adaptive",
        "gradient-free",
        "checks",
        "checks",
    ]
    assert found.sentence.startswith("masked: the transfer attack")
    assert "gradients" in found.evidence[3].text  # the plainest check first
    only_checks = verdict(record(AA, CHAIN, findings))
    assert only_checks.sentence == "masked: the check gradients fails with 0.9: zero"
    assert json.loads(json.dumps([evidence._asdict() for evidence in found.evidence]))


def test_the_review_leaves_adaptive_attacks_to_the_verdict():
    made = record(AA | {"a10/square": range(5)}, CHAIN | {"a10": ("apgd", "square", "a10/square")})
    assert {finding.check: finding.verdict for finding in review(made)}[
        "gradient-free"
    ] == "fail"  # of AutoAttack's own
    calm = record({"apgd": range(400, 900), "square": (), "a10/square": range(5)}, CHAIN | {"a10": ("a10/square",)})
    assert {finding.check: finding.verdict for finding in review(calm)}["gradient-free"] == "pass"
    assert verdict(calm).kind == "no sign of masking"


def test_the_rules_are_told_with_their_limits():
    lines = rules_table().splitlines()
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]] == [rule.name for rule in RULES]
    assert all(line.count("|") == 6 for line in lines)
    assert told("verdict") == f"{explanation('verdict')}\n\n{rules_table().rstrip()}"
    assert told("noise") == explanation("noise")


def test_a_report_and_its_table_tell_each_records_verdict(tmp_path):
    sound = record(AA | {"a1/joint": range(3)}, CHAIN)
    masked = record(AA | {"a1/joint": range(300)}, CHAIN)
    for name, made in (("sound", sound), ("masked", masked), ("untested", record(AA, CHAIN))):
        object.__setattr__(made, "name", name)
        made.save(tmp_path / "records", name)
    table, path, *_ = write_report(tmp_path)
    section = path.read_text().partition("## Verdict\n")[2].partition("## Findings\n")[0]
    assert section.count(rules_table()) == 1
    assert f"- sound: {verdict(sound).sentence}\n" in section
    assert f"- masked: {verdict(masked).sentence}\n" in section
    assert f"- untested: {NOT_TESTED}\n" in section
    machine = {row["model"]: row["verdict"] for row in json.loads((tmp_path / "table.json").read_text())["records"]}
    assert {name: row["kind"] for name, row in machine.items()} == {
        "sound": "no sign of masking", "masked": "masked", "untested": "not tested",
    }  # fmt: skip
    assert machine["masked"]["sentence"] == verdict(masked).sentence
    assert machine["masked"]["evidence"][0]["share"] == 0.3
    assert table.verdicts == tuple(row["sentence"] for row in machine.values())


def test_rows_of_one_verdict_share_a_line_in_the_terminal():
    stream = io.StringIO()
    console = Console(width=400, color_system=None, file=stream)
    console.print(accuracy_table([record(AA, CHAIN), record({}), record(AA | {"a1/joint": range(300)}, CHAIN)]).rich())
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    assert f"it, seed 0, it, seed 0: {NOT_TESTED}" in lines
    assert sum("masked: of the 396" in line for line in lines) == 1

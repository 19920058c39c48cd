"""What a record's own numbers give away, on records made by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fsr_lab.attack.pgd import PGD
from fsr_lab.core.objective import Margin, OnLogits
from fsr_lab.core.provenance import Provenance
from fsr_lab.core.record import EvaluationRecord
from fsr_lab.core.threat import Threat
from fsr_lab.evaluation.doctor import REVIEW, review
from fsr_lab.evaluation.run import evaluate

THREAT = Threat(norm="linf", eps=8 / 255)
N = 1000


def pgd(steps, relative_step=0.1, **options):
    return repr(PGD(threat=THREAT, steps=steps, relative_step=relative_step, random_start=False, **options))


SETTINGS = {
    "fgsm": pgd(1, 1), "pgd20": pgd(20), "pgd100": pgd(100), "cw30": pgd(30, objective=OnLogits(Margin(kappa=50))),
    "square": "Square(threat=linf, queries=5000)", "nattack": "NAttack(queries=1)", "spsa": "SPSA(queries=1)",
    "transfer": f"Transfer(source=<at, weights 1f>, attack={pgd(20)})", "repeated": f"Repeated(attack={pgd(3)})",
}  # fmt: skip


def record(right, *, chains=None, n=N):
    """Return a record in which each attack leaves the first `right` of n samples; a pair names the first it ran on too.

    Of a pair (k, ran) the attack was run on the first `ran` samples and left the first k.
    """
    names = ("clean", *(name for name in right if name != "clean"))
    right = {"clean": n} | right
    outcome = np.zeros((len(names), n), dtype=np.int8)
    for row, name in zip(outcome, names, strict=True):
        left, ran = right[name] if isinstance(right[name], tuple) else (right[name], n)
        row[:left] = 1
        row[ran:] = -1
    run = outcome >= 0
    margin = np.where(run, np.where(outcome == 1, 0.5, -0.5), np.nan).astype(np.float32)
    norm = np.where(run, np.float32(THREAT.eps), np.nan).astype(np.float32)
    norm[0] = 0
    counts = np.full(len(names), n)
    return EvaluationRecord(
        attacks=names, outcome=outcome, margin=margin, norm=norm, ids=np.arange(n), labels=np.zeros(n, dtype=np.int64),
        forwards=counts, backwards=counts, threat=THREAT, precision="float32", chunk=500,
        settings={name: SETTINGS[name] for name in names[1:]}, findings=(), chains=chains or {},
        provenance=Provenance.collect(command="test", seed=0, hashes={}),
    )  # fmt: skip


def found(record):
    """Return {check: (verdict, number)}."""
    return {finding.check: (finding.verdict, pytest.approx(finding.value)) for finding in review(record)}


def not_well(record):
    """Return {check: (verdict, attacks)} of what is not as it should be."""
    return {finding.check: finding[1::3] for finding in review(record) if finding.verdict != "pass"}


SOUND = {"clean": 900, "fgsm": 600, "pgd20": 550, "pgd100": 548, "cw30": 540, "square": 560, "transfer": 800}


def test_a_sound_record_passes_every_check():
    findings = review(record(SOUND))
    assert {finding.verdict for finding in findings} == {"pass"}
    assert [finding.check for finding in findings] == list(REVIEW)
    assert all(finding.attacks == () and "\n" not in finding.text for finding in findings)


def test_what_the_record_has_no_attacks_for_is_left_out():
    assert set(found(record({}))) == {"inside-ball", "ensemble"}
    assert set(found(record({"cw30": 500}))) == {"inside-ball", "ensemble"}
    assert set(found(record({"square": 500}))) == {"inside-ball", "ensemble"}
    assert review(record({"pgd20": 0, "pgd100": 0}, n=0)) == ()
    assert set(found(record({"fgsm": 600, "pgd20": 500}))) == {"inside-ball", "ensemble", "fgsm"}


@pytest.mark.parametrize("how", ["too large", "not a number"])
def test_a_perturbation_outside_the_ball_fails_its_column(how):
    sound = record(SOUND)
    norm = sound.norm.copy()
    norm[2, 7] = np.nan if how == "not a number" else THREAT.eps + 2e-6
    assert not_well(replace(sound, norm=norm)) == {"inside-ball": ("fail", ("pgd20",))}
    assert found(replace(sound, norm=norm))["inside-ball"] == ("fail", 1 / (7 * N))
    norm[2, 7] = THREAT.eps + 5e-7  # rounding
    assert not_well(replace(sound, norm=norm)) == {}


@pytest.mark.parametrize("name", ["square", "nattack", "spsa", "transfer"])
@pytest.mark.parametrize(("right", "fails"), [(538, False), (537, True)])
def test_an_attack_without_gradients_that_is_ahead_fails_the_others(name, right, fails):
    made = record({"clean": 900, "fgsm": 600, "pgd20": 550, "cw30": 540, name: right})
    assert not_well(made) == ({"gradient-free": ("fail", ("fgsm", "pgd20", "cw30"))} if fails else {})
    assert found(made)["gradient-free"][1] == (540 - right) / 1000


TRANSFER, QUERIES = SETTINGS["transfer"], SETTINGS["spsa"]


@pytest.mark.parametrize(
    ("text", "is_free"),
    [
        (f"Restarts(attack={QUERIES}, restarts=2)", True),
        (f"Family(attacks={{'one': {TRANSFER}, 'two': {TRANSFER}}})", True),
        (f"Family(attacks={{'one': {TRANSFER}, 'two': {QUERIES}}})", True),
        (f"Family(attacks={{'one': {TRANSFER}, 'two': {pgd(20)}}})", False),
        (f"Stages(attacks=({pgd(20)}, {QUERIES}))", False),
        (f"Family(attacks={{'one': {TRANSFER}, 'two': {TRANSFER.replace('(', '(with_target=True, ', 1)}}})", False),
        ("Foreign(steps=3)", False),
    ],
)
def test_of_attacks_that_carry_out_others_each_one_counts(text, is_free):
    made = record({"clean": 900, "pgd20": 550, "square": 400})
    made = replace(made, settings=made.settings | {"square": text})
    assert ("gradient-free" in not_well(made)) == is_free


def test_what_an_attack_without_gradients_takes_from_its_chain_counts():
    chains = {"autoattack": ("pgd20", "cw30", "square")}
    whole = {"clean": 900, "pgd20": (550, 900), "cw30": (540, 550)}
    assert not_well(record({**whole, "square": (538, 540)}, chains=chains)) == {}
    made = record({**whole, "square": (537, 540)}, chains=chains)
    assert not_well(made) == {"gradient-free": ("fail", ("pgd20", "cw30"))}
    assert found(made)["gradient-free"] == ("fail", 0.003)
    # the attack was run on all samples, those with gradients in their chain
    apart = {"white": ("pgd20", "cw30")}
    assert not_well(record({**whole, "square": 538}, chains=apart)) == {}
    assert found(record({**whole, "square": 530}, chains=apart))["gradient-free"] == ("fail", 0.01)
    # what comes after it was not run on what it broke
    early = {"early": ("pgd20", "square", "cw30")}
    before = {"clean": 900, "pgd20": (550, 900), "square": (500, 550), "cw30": (490, 500)}
    assert "gradient-free" not in found(record(before, chains=early))
    # alone in its chain it only tells how far it comes by itself
    assert "gradient-free" not in found(record({"clean": 900, "square": (300, 900)}, chains={"one": ("square",)}))


def test_samples_that_gradient_attacks_never_came_to_do_not_count_as_withstood():
    chains = {"early": ("square", "pgd20")}  # of the 900, square leaves 550 for pgd20 to see
    made = {"clean": 900, "square": (550, 900), "pgd20": (540, 550)}
    assert found(record({**made, "nattack": 545}, chains=chains))["gradient-free"] == ("pass", -0.005)
    assert found(record({**made, "nattack": 530}, chains=chains))["gradient-free"] == ("fail", 0.01)
    # nor is it counted against pgd20 that nattack was let down there, too
    whole = record({**made, "nattack": 530}, chains=chains)
    outcome = whole.outcome.copy()
    outcome[whole.attacks.index("nattack"), 600:800] = 1
    assert found(replace(whole, outcome=outcome))["gradient-free"] == ("fail", 0.01)


def test_a_lead_within_chains_after_chains_is_held_against_those_before_it():
    whole = {"clean": 900, "fgsm": 600, "pgd20": (550, 900), "square": (530, 550), "pgd100": (500, 530)}
    chains = {"autoattack": ("pgd20", "square"), "adaptive": ("pgd20", "square", "pgd100")}
    made = record(whole, chains=chains)
    assert not_well(made) == {"gradient-free": ("fail", ("pgd20",))}
    assert found(made)["gradient-free"] == ("fail", 0.02)
    # what square took before pgd100 saw it is not held against pgd100
    assert not_well(record({**whole, "nattack": 500}, chains={"adaptive": chains["adaptive"]})) == {}
    assert found(record({**whole, "nattack": 490}, chains={"adaptive": chains["adaptive"]}))["gradient-free"] == (
        "fail", 0.01,
    )  # fmt: skip


def test_of_few_samples_one_is_luck():
    assert not_well(record({"clean": 90, "pgd20": 60, "square": 59}, n=100)) == {}
    assert not_well(record({"clean": 90, "pgd20": 60, "pgd100": 61}, n=100)) == {}
    assert set(not_well(record({"clean": 90, "pgd20": 60, "square": 58}, n=100))) == {"gradient-free"}


@pytest.mark.parametrize(("longer", "verdict"), [(552, None), (553, "warn"), (560, "warn"), (561, "fail")])
def test_more_steps_leave_no_more(longer, verdict):
    made = record({"clean": 900, "pgd20": 550, "pgd100": longer})
    assert not_well(made) == ({"more-steps": (verdict, ("pgd20", "pgd100"))} if verdict else {})
    assert found(made)["more-steps"][1] == (longer - 550) / 1000


def test_attacks_on_another_loss_are_not_compared():
    assert set(found(record({"pgd20": 500, "cw30": 700}))) == {"inside-ball", "ensemble"}
    assert set(found(record({"fgsm": 500, "cw30": 700}))) == {"inside-ball", "ensemble"}


@pytest.mark.parametrize(("right", "verdict"), [(602, None), (603, "warn"), (611, "fail")])
def test_many_steps_leave_no_more_than_one(right, verdict):
    made = record({"clean": 900, "fgsm": 600, "pgd20": right, "pgd100": 400})
    assert not_well(made) == ({"fgsm": (verdict, ("pgd20",))} if verdict else {})


def test_margins_and_outcomes_of_two_evaluations_do_not_fit():
    sound = record({"clean": 900, "pgd20": 500, "cw30": 600})
    assert found(sound)["ensemble"] == ("pass", 0.0)
    margin = sound.margin.copy()
    margin[1, 500:520] = 1
    assert not_well(replace(sound, margin=margin)) == {"ensemble": ("fail", ())}
    assert found(replace(sound, margin=margin))["ensemble"] == ("fail", 0.02)


def test_an_evaluation_of_ours_passes_and_keeps_its_findings(tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    x = torch.rand(40, 3, 8, 8)
    attacks = {
        name: PGD(threat=THREAT, steps=steps, relative_step=size, random_start=False)
        for name, steps, size in (("fgsm", 1, 1), ("pgd5", 5, 0.25), ("pgd10", 10, 0.25))
    }
    made = evaluate(net, [(x, net(x).argmax(1))], attacks, threat=THREAT, seed=0)
    findings = review(made)
    assert [finding.check for finding in findings] == ["inside-ball", "more-steps", "fgsm", "ensemble"]
    assert {finding.verdict for finding in findings} == {"pass"}
    path = replace(made, findings=findings).save(tmp_path, "it")
    assert EvaluationRecord.load(path).findings == findings

"""fsr doctor as a user meets it: a sound run, a broken network, a record that gives itself away, an explanation."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from fsr_lab.core.explain import explanations
from fsr_lab.core.record import EvaluationRecord
from fsr_lab.evaluation import deep_checks, subject
from fsr_lab.evaluation.doctor import EXAMINATION
from fsr_lab.report.verdict import rules_table

NETWORK = ("dataset=toy", "model=tiny_cnn", "model.batch_norm=true", "device=cpu")


@pytest.fixture
def own(trained, tmp_path):
    """Return a finished run of this test's own."""
    return Path(shutil.copytree(trained.run, tmp_path / "own"))


def row(outcome, check):
    """Return the only row of the table about a check, by its first line."""
    (line,) = [line for line in outcome.out.splitlines() if re.search(f"│ {check} +│ [A-Z]", line)]
    return line


def test_a_trained_run_is_sound_and_its_records_are_reviewed(fsr, trained, tmp_path):
    outcome = fsr("doctor", f"run={trained.run}", "device=cpu")
    assert outcome.code == 0, outcome.out + outcome.err
    assert "FAIL" not in outcome.out
    for check in EXAMINATION:
        assert "PASS" in row(outcome, check)
    name = EvaluationRecord.load(trained.run / "records" / "last.json").name
    assert f"│ {name} " in outcome.out
    assert f"│ record of {name} " in outcome.out
    assert "inside-ball" in outcome.out
    assert "Measured" not in outcome.out  # nothing to explain
    assert "not run" not in outcome.out
    assert list(tmp_path.iterdir()) == []  # no run directory, no log


def test_weights_of_a_file_are_examined_at_the_given_threat(fsr, trained, tmp_path):
    torch.save(checkpoint_of(trained.run), tmp_path / "weights.pt")
    network = (*NETWORK, "defense=fsr", "defense.module.width=4", "threat.eps=4/255")
    outcome = fsr("doctor", *network, f"weights={tmp_path / 'weights.pt'}")
    assert outcome.code == 0, outcome.out + outcome.err
    assert "at eps 4/255" in row(outcome, "falls-with-eps")
    assert "weights.pt" in outcome.out
    assert "record of" not in outcome.out


def checkpoint_of(run):
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}


def test_a_broken_network_fails_with_exit_code_1_and_is_told_what_to_do(fsr, trained, tmp_path):
    state = checkpoint_of(trained.run)
    state["backbone.fc.bias"][0] = torch.nan
    torch.save(state, tmp_path / "weights.pt")
    network = (*NETWORK, "defense=fsr", "defense.module.width=4")
    outcome = fsr("doctor", *network, f"weights={tmp_path / 'weights.pt'}", "samples=8")
    assert (outcome.code, outcome.err) == (1, "")
    assert "FAIL" in row(outcome, "finite")
    assert outcome.out.count("FAIL") == 1
    (line,) = [line for line in outcome.out.splitlines() if line.startswith("not run")]
    assert "labels, logits, deterministic" in line
    said = " ".join(outcome.out.partition("not run")[2].split())
    assert " ".join(explanations()["finite"].split()) in said
    assert "Measured: the share of images with NaN" in said


def test_a_record_that_gives_itself_away_fails_and_names_its_columns(fsr, own):
    record = EvaluationRecord.load(own / "records" / "last.json")
    norm = record.norm.copy()
    norm[record.attacks.index("fgsm"), 3] *= 2
    object.__setattr__(record, "norm", norm)
    record.save(own / "records", "last")
    outcome = fsr("doctor", f"run={own}", "device=cpu")
    assert outcome.code == 1
    (line,) = [line for line in outcome.out.splitlines() if "FAIL" in line]
    assert "inside-ball" in line
    assert "(touches fgsm)" in " ".join(re.split(r"[│\s]+", outcome.out))
    assert "give the attack this evaluation's threat" in " ".join(outcome.out.split())


def test_one_check_is_explained(fsr, tmp_path):
    for check in ("gradients", "more-steps"):
        outcome = fsr("doctor", f"explain={check}")
        assert (outcome.code, outcome.out) == (0, explanations()[check] + "\n")
    line = fsr("doctor", "explain=gradient").refusal()
    assert "no check named 'gradient'; close names: ['gradients'" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ((), ["run=DIR", "weights=FILE"]),
        (("run=nowhere",), ["nowhere", "not a run"]),
        (("weights=nowhere.pt", *NETWORK), ["no checkpoint at nowhere.pt"]),
    ],
)
def test_a_wrong_command_gets_one_line(fsr, argv, said):
    line = fsr("doctor", *argv).refusal()
    assert [text for text in said if text not in line] == [], line


def test_its_help_says_what_the_exit_code_means(fsr):
    outcome = fsr("doctor", "--help")
    assert outcome.code == 0
    assert outcome.out.startswith("fsr doctor: ")
    assert "exit code is 1 where a check fails" in outcome.out
    assert "model: " in outcome.out


@pytest.fixture
def brief(monkeypatch):
    """Make long attacks short."""
    monkeypatch.setattr(deep_checks, "QUERIES", 20)
    for module in (subject, deep_checks):
        monkeypatch.setattr(module, "LONG", (1, 2, 3, 4))


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("flag", ["--deep", "deep=true"])
def test_a_deep_examination_adds_its_checks_and_the_verdicts(fsr, trained, flag):
    outcome = fsr("doctor", f"run={trained.run}", "device=cpu", flag, "samples=16")
    assert outcome.code in (0, 1), outcome.err
    for check in ("loss-rises", "thousand-steps", "eps-ladder", "black-box"):
        assert row(outcome, check)
    name = EvaluationRecord.load(trained.run / "records" / "last.json").name
    lines = outcome.out.partition("\nverdict\n")[2].splitlines()
    (network,) = [line for line in lines if line.startswith(f"{name}: ")]
    assert re.match(f"{re.escape(name)}: (masked|not tested): ", network)
    assert f"record of {name}: not tested: no adaptive attack was run; give evaluation=adaptive" in lines


def test_without_it_there_is_no_verdict_and_it_is_yes_or_no(fsr, trained):
    outcome = fsr("doctor", f"run={trained.run}", "device=cpu", "samples=16")
    assert "black-box" not in outcome.out
    assert "verdict\n" not in outcome.out
    line = fsr("doctor", f"run={trained.run}", "device=cpu", "deep=perhaps").refusal()
    assert "expected deep to be true or false, got 'perhaps'" in line


def test_the_help_tells_of_it_and_the_rules_are_told(fsr):
    assert "--deep" in fsr("doctor", "--help").out
    assert fsr("doctor", "explain=verdict").out == f"{explanations()['verdict']}\n\n{rules_table()}"


@pytest.mark.usefixtures("brief")
def test_an_evaluation_may_ask_for_it_and_prints_the_verdict(fsr, trained):
    outcome = fsr("evaluate", f"run={trained.run}", "attack=fgsm", "+evaluation.deep=true", "trainer.devices=1")
    assert outcome.code == 0, outcome.err
    assert "not tested: no adaptive attack was run; give evaluation=adaptive" in outcome.out
    (report,) = [line.removeprefix("report: ") for line in outcome.out.splitlines() if line.startswith("report: ")]
    (path,) = Path(report).parent.glob("records/*.json")
    assert "black-box" in {finding.check for finding in EvaluationRecord.load(path).findings}
    line = fsr("evaluate", f"run={trained.run}", "attack=fgsm", "+evaluation.deep=7", "trainer.devices=1").refusal()
    assert "expected evaluation.deep to be true or false, got 7" in line

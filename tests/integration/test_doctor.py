"""fsr doctor as a user meets it: a sound run, a broken network, a record that gives itself away, an explanation."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from fsr_lab.core.explain import explanations
from fsr_lab.core.record import EvaluationRecord
from fsr_lab.evaluation.doctor import EXAMINATION

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

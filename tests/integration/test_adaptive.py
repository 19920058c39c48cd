"""The adaptive evaluation from the command line: its table and report, its ledger, its refusals, and the remedies."""

import csv
import json

import numpy as np
import pytest
import torch

from fsr_lab.core.record import CLEAN, EvaluationRecord
from fsr_lab.evaluation import run as evaluation

SMALL = ("evaluation=adaptive", "budget=smoke", "evaluation.attacks.square.queries=20", "device=cpu")
"""AutoAttack's own Square takes longer than all else."""

KINDS = ("masked: ", "no sign of masking: ", "not tested: ")


@pytest.fixture
def attacked(monkeypatch):
    """Return the list of the attacks that evaluations run from now on, one entry a cell."""
    found, original = [], evaluation.run_cells

    def watched(model, attacks, *args, **options):
        found.append(tuple(attacks))
        return original(model, attacks, *args, **options)

    monkeypatch.setattr(evaluation, "run_cells", watched)
    return found


@pytest.fixture(scope="module")
def undefended(fsr_module, tiny, tmp_path_factory):
    """Return a run without a defence."""
    run = tmp_path_factory.mktemp("undefended") / "run"
    quick = ("trainer.max_epochs=1", "+trainer.limit_train_batches=2", "evaluation=none")
    outcome = fsr_module("train", *tiny, *quick, f"hydra.run.dir={run}")
    assert outcome.code == 0, outcome.err
    return run


def record_of(folder):
    return EvaluationRecord.load(folder / "records" / "evaluation.json")


@pytest.mark.slow
def test_table_report_and_ledger(fsr, trained, undefended, attacked, tmp_path):
    argv = ("evaluate", f"run={trained.run}", *SMALL, f"surrogates.plain={undefended}", f"ledger={tmp_path / 'ledger'}")
    first = fsr(*argv, f"hydra.run.dir={tmp_path / 'one'}")
    assert first.code == 0, first.err
    record = record_of(tmp_path / "one")
    assert len(record) == 20
    families = {name.partition("/")[0] for name in record.attacks if "/" in name}
    assert families == {f"a{number}" for number in range(1, 11)}
    assert set(record.attacks) == {name for names in attacked for name in names}
    (heading,) = (line for line in first.out.splitlines() if "AutoAttack" in line and "Natural" in line)
    assert "Adaptive worst case" in heading
    assert [f"A{number}" in heading for number in range(1, 11)] == [True] * 10
    assert "A10 on at most 5 of the samples left in each chunk" in " ".join(first.out.split())
    (sentence,) = (line for line in first.out.splitlines() if any(kind in line for kind in KINDS))
    report = (tmp_path / "one" / "report.md").read_text()
    broke = report.partition("## What broke each sample\n")[2].partition("\n## ")[0]
    assert ", Adaptive worst case:\n" in broke
    assert "| wrong unattacked | " in broke
    judged = report.partition("## Verdict\n")[2].partition("\n## ")[0]
    assert f"- {sentence.strip()}" in judged
    (told,) = json.loads((tmp_path / "one" / "table.json").read_text())["records"]
    chain = ("clean", *record.chains["adaptive"])
    assert told["first_broken_by"]["chain"] == "adaptive"
    for place, name in enumerate(told["first_broken_by"]["samples"].values()):
        wrong = [each for each in chain if record.outcome[record.attacks.index(each), place] == 0]
        assert name == (wrong[0] if wrong else None)
    assert told["verdict"]["sentence"] in sentence

    attacked.clear()
    second = fsr(*argv, f"hydra.run.dir={tmp_path / 'two'}", "evaluation.deep=false")
    assert second.code == 0, second.err
    assert attacked == [(CLEAN,)]  # by which the ledger is known to be the network's
    again = record_of(tmp_path / "two")
    for name in ("outcome", "margin", "norm", "forwards", "backwards"):
        assert getattr(again, name).tobytes() == getattr(record, name).tobytes(), name
    assert again.chains == record.chains


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["budget=nope"], ["no budget named 'nope'", "'smoke'"]),
        (["attack=[a7]", "surrogates.plain=missing_folder"], ["no surrogate at missing_folder", "a run of fsr train"]),
        (["attack=[a7]", "surrogates.nope=x"], ["surrogates.nope"]),
        (["attack=[a7]", "+surrogates.nope=x"], ["no attack of this evaluation crafts on surrogates.nope=x", "plain"]),
        (["evaluation=paper", "surrogates.plain=x"], ["crafts on surrogates.plain=x", "evaluation=adaptive"]),
    ],
)
def test_what_cannot_work_is_told_in_one_line(fsr, trained, words, said):
    line = fsr("evaluate", f"run={trained.run}", "device=cpu", *words).refusal()
    assert all(each in line for each in said), line


def test_attacks_that_do_not_concern_the_network_are_told_and_those_alone_refused(fsr, undefended, tmp_path):
    argv = ("evaluate", f"run={undefended}", "device=cpu", "budget=smoke", f"hydra.run.dir={tmp_path / 'run'}")
    reason = "a3 is left out: no defence of the network knows the route stop"
    line = fsr(*argv, "attack=[a3]").refusal()
    assert f"no attack was run, as none of those asked for concerns this network: {reason}" in line
    assert not (tmp_path / "run" / "records").exists()
    outcome = fsr(*argv, "attack=[a3,fgsm]")
    assert outcome.code == 0, outcome.err
    assert any(line.startswith(reason) for line in outcome.err.splitlines())
    assert record_of(tmp_path / "run").attacks == ("clean", "fgsm")
    report = (tmp_path / "run" / "report.md").read_text()
    assert f"Not run, as they do not concern the network:\n\n- {reason}" in report


def test_clean_accuracy_alone_may_be_asked_for(fsr, undefended, tmp_path):
    outcome = fsr("evaluate", f"run={undefended}", "device=cpu", "evaluation=none", f"hydra.run.dir={tmp_path / 'run'}")
    assert outcome.code == 0, outcome.err
    assert record_of(tmp_path / "run").attacks == ("clean",)


def test_training_through_a_softened_mask_and_on_the_heads(fsr, tiny, tmp_path):
    quick = ("strategy=at", "defense=fsr", "defense.module.width=4", "trainer.max_epochs=1",
             "+trainer.limit_train_batches=3", "evaluation=none", "threat.eps=16/255")  # fmt: skip
    found = {}
    for attack in ("pgd10_train", "pgd10_softened", "pgd10_heads"):
        run = tmp_path / attack
        outcome = fsr("train", *tiny, *quick, f"attack={attack}", f"hydra.run.dir={run}")
        assert outcome.code == 0, outcome.err
        with next(run.glob("metrics/*/metrics.csv")).open() as stream:
            losses = [
                float(value) for row in csv.DictReader(stream) for key, value in row.items() if "loss" in key and value
            ]
        assert len(losses) >= 3
        assert np.isfinite(losses).all()
        state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        found[attack] = torch.cat([tensor.double().flatten() for tensor in state.values()])
        assert found[attack].isfinite().all()
    plain, softened, heads = found.values()
    assert not torch.equal(softened, plain)
    assert not torch.equal(heads, plain)
    assert not torch.equal(heads, softened)


def test_a_mask_without_a_temperature_is_another_network(fsr, trained, tmp_path):
    margins = []
    for words in ([], ["+defense.module.eval_mask=sigmoid"]):
        folder = tmp_path / str(len(words))
        outcome = fsr(
            "evaluate", f"run={trained.run}", "device=cpu", "attack=[fgsm]", f"hydra.run.dir={folder}", *words
        )
        assert outcome.code == 0, outcome.err
        margins.append(record_of(folder).margin)
    assert (margins[0] != margins[1]).mean() > 0.9

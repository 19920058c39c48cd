"""Strategies through the real command line: bases, curricula, and what a wrong combination gets."""

import csv
import json

import pytest
import torch
from omegaconf import OmegaConf

from fsr_lab.core.record import EvaluationRecord

AT = ("strategy.attack.steps=2",)


def curve(run, name):
    """Return the logged values of a metric."""
    (path,) = run.glob("metrics/**/metrics.csv")
    with path.open(newline="") as stream:
        return [float(row[name]) for row in csv.DictReader(stream) if row.get(name)]


@pytest.mark.parametrize(
    ("options", "terms"),
    [
        (("strategy=trades", *AT, "defense=fsr"), {"ce", "kl", "block2/sep", "block2/rec"}),
        (("strategy=mart", *AT, "defense=none"), {"bce", "kl"}),
        (("strategy=cat", "strategy.base=trades", "strategy.max_strength=2", "defense=none"), {"ce", "kl"}),
        (("strategy=s2o_mart", "strategy.base.attack.steps=2", "defense=none"), {"bce", "kl", "s2o"}),
    ],
    ids=["trades+fsr", "mart", "cat over trades", "s2o_mart"],
)
def test_a_strategy_trains_and_logs_every_term(options, terms, fsr, tiny, tmp_path):
    run = tmp_path / "run"
    short = ("trainer.max_epochs=1", "+trainer.limit_train_batches=2", "evaluation=none", f"hydra.run.dir={run}")
    outcome = fsr("train", *[word for word in tiny if not word.startswith(("strategy=", "defense="))], *options, *short)
    assert outcome.code == 0, outcome.err
    logged = {term: curve(run, f"train/{term}") for term in terms}
    assert all(len(values) == 2 for values in logged.values()), logged
    total = curve(run, "train/loss")
    assert total == pytest.approx([sum(values) for values in zip(*logged.values(), strict=True)], rel=1e-5)
    name = next(word for word in options if word.startswith("strategy=")).partition("=")[2]
    over = "(trades)" if "strategy.base=trades" in options else ""
    assert f"label: {name}{over}+" in (run / "config.yaml").read_text()


@pytest.mark.parametrize("strategy", ["fat", "s2o_mart", "trades"])
def test_the_short_form_of_the_attack_reaches_the_strategy_that_crafts(strategy, fsr, tiny, tmp_path):
    run = tmp_path / "run"
    kept = [word for word in tiny if not word.startswith("strategy=")]
    short = ("trainer.max_epochs=1", "+trainer.limit_train_batches=1", "evaluation=none", f"hydra.run.dir={run}")
    outcome = fsr("train", *kept, f"strategy={strategy}", "attack=fgsm", *short)
    assert outcome.code == 0, outcome.err
    node = OmegaConf.load(run / "config.yaml").strategy
    assert (node.base if "base" in node else node).attack.steps == 1


@pytest.mark.parametrize("rule", [("validation", "callback.curriculum.patience=1"), ("threshold",)], ids=lambda r: r[0])
def test_a_curriculum_trains_and_keeps_its_state(rule, fsr, tiny, tmp_path):
    run = tmp_path / "run"
    outcome = fsr(
        "train", *[word for word in tiny if not word.startswith("strategy=")], "strategy=cat", "callback=curriculum",
        f"callback.curriculum.rule={rule[0]}", *rule[1:], "callback.curriculum.train_acc=0", "trainer.max_epochs=6",
        "optim.lr=0", "val_attack.steps=2", "strategy.max_strength=2", f"hydra.run.dir={run}",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    kept = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    (state,) = [value for key, value in kept.items() if key.startswith("Curriculum")]
    assert state["strength"] == 2
    assert EvaluationRecord.load(run / "records" / "last.json").attacks[0] == "clean"
    assert json.loads((run / "status.json").read_text())["state"] == "finished"


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        (("strategy=cat", "strategy.base=natural"), "Natural"),
        (("strategy=fat", "strategy.base=cat"), "crafts in a way of its own"),
        (("strategy=trades", "strategy.beta=-1"), "beta of at least 0, got -1"),
        (("strategy=mart", "strategy.lambda_kl=-2"), "lambda_kl of at least 0, got -2"),
        (("strategy=at", "callback=curriculum"), "AT has none"),
        (("strategy=trades", "strategy.beta=abc"), "beta of at least 0, got abc"),
        (("strategy=cat", "strategy.max_strength=2.5"), "whole number of at least 1, got 2.5"),
        (("strategy=at", "defense=kwta", "defense.at=block1"), "block1.relu"),
        (("strategy=trade",), "trades"),
        (("strategy=cat", "strategy.base=trade"), "trades"),
    ],
)
def test_a_wrong_combination_gets_one_line(options, cause, fsr, tiny, tmp_path):
    kept = [word for word in tiny if not word.startswith("strategy=")]
    outcome = fsr("train", *kept, *options, f"hydra.run.dir={tmp_path / 'run'}")
    assert cause in outcome.refusal()
    assert not list(tmp_path.glob("run/checkpoints/*"))

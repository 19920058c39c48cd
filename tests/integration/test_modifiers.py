"""Modifiers on the real command line: what a run with averages keeps, attacks, resumes, and shares between ranks."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from fsr_lab.core.record import EvaluationRecord

STEPS = 5  # of an epoch: 288 images in batches of 64, the last of 32
SMALL = (
    "strategy.attack.steps=1", "val_attack.steps=1", "dataset.batch_size=64", "defense=fsr", "defense.module.width=4",
)  # fmt: skip
TWO = ("trainer.devices=2", "trainer.accelerator=cpu")


def checkpoint(run, which="last"):
    return torch.load(run / "checkpoints" / f"{which}.ckpt", weights_only=True)


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert [name for name, value in one.items() if not torch.equal(value, other[name])] == []


def rows(run):
    with (run / "table.csv").open(newline="") as stream:
        return list(dict.fromkeys(row["model"] for row in csv.DictReader(stream)))


def record(path):
    return EvaluationRecord.load(path)


@pytest.fixture(scope="module")
def averaged(fsr_module, tiny, tmp_path_factory):
    """Return a finished run of AT+FSR under AWP with two averages, and what it printed."""
    run = tmp_path_factory.mktemp("averaged") / "run"
    command = ("strategy=at", "modifier=[awp,ema,swa]", "modifier.swa.start_epoch=2", "modifier.awp.gamma=0.05")
    outcome = fsr_module("train", *tiny, *SMALL, *command, "test_checkpoints=[last,best]", f"hydra.run.dir={run}")
    assert outcome.code == 0, outcome.err
    return run, outcome


def test_online_and_averaged_weights_are_kept_and_attacked(averaged):
    run, _ = averaged
    for which in ("last", "best"):
        kept = checkpoint(run, which)
        assert list(kept["averages"]) == ["ema", "swa"]
        assert kept["averages"]["ema"].keys() == kept["state_dict"].keys()
    hashes = set()
    for name in ("ema", "swa", "online"):
        found = record(run / "records" / f"last_{name}.json")
        assert found.name == f"at+fsr+awp (last, {name})"
        hashes.add(found.provenance.hashes["weights"])
    assert len(hashes) == 3
    wanted = [f"at+fsr+awp ({c}, {w})" for c in ("last", "best") for w in ("ema", "swa", "online")]
    assert sorted(rows(run)) == sorted(wanted)
    assert "at+fsr+awp (last, ema)" in rows(run)[:3]  # last comes before best


@pytest.mark.parametrize("average", ["ema", "online", None])
def test_evaluation_takes_the_weights_that_are_asked_for(fsr, averaged, tmp_path, average):
    run, _ = averaged
    chosen = () if average is None else (f"average={average}",)
    outcome = fsr("evaluate", f"run={run}", *chosen, "evaluation=quick", "device=cpu")
    assert outcome.code == 0, outcome.err
    (path,) = tmp_path.glob("runs/evaluate/*/records/*.json")
    found, trained = record(path), record(run / "records" / f"last_{average or 'ema'}.json")
    assert found.name == trained.name
    assert found.provenance.hashes["weights"] == trained.provenance.hashes["weights"]
    assert np.array_equal(found.margin, trained.margin)


def test_weights_from_a_file_with_averages_are_named(fsr, averaged, tmp_path):
    network = ("dataset=toy", "model=tiny_cnn", "model.batch_norm=true", "defense=fsr", "defense.module.width=4")
    weights = averaged[0] / "checkpoints" / "last.ckpt"
    outcome = fsr("evaluate", *network, f"weights={weights}", "average=swa", "evaluation=none", "device=cpu")
    assert outcome.code == 0, outcome.err
    (path,) = tmp_path.glob("runs/evaluate/*/records/*.json")
    assert record(path).name == "last.ckpt, swa"


def test_an_average_that_is_not_there_gets_one_line(fsr, averaged, trained):
    run, _ = averaged
    line = fsr("evaluate", f"run={run}", "average=emma", "evaluation=none", "device=cpu").refusal()
    assert "no average named 'emma'; close names: ['ema']" in line
    assert str(run) in line
    line = fsr("evaluate", f"run={trained.run}", "average=ema", "evaluation=none", "device=cpu").refusal()
    assert "no average named 'ema'; there are: ['online']" in line
    online = fsr("evaluate", f"run={trained.run}", "average=online", "evaluation=none", "device=cpu")
    assert online.code == 0, online.err
    assert "at+fsr (last) " in online.out


def test_seat_is_at_with_its_average_and_joins_other_modifiers(fsr, tiny, tmp_path):
    run = tmp_path / "run"
    command = ("strategy=seat", "modifier=[awp]", "trainer.max_epochs=1", f"hydra.run.dir={run}")
    outcome = fsr("train", *tiny, *SMALL, *command)
    assert outcome.code == 0, outcome.err
    assert list(checkpoint(run)["averages"]) == ["seat_average"]
    assert rows(run) == ["seat+fsr+awp (last, online)", "seat+fsr+awp (last, seat_average)"]
    config = (run / "config.yaml").read_text()
    assert "fsr_lab.modifier.awp.AWP" in config
    assert "fsr_lab.strategy.at.AT" in config


def test_averages_do_not_disturb_the_training(fsr, tiny, tmp_path):
    averages = ("modifier=[ema,swa]", "modifier.swa.start_epoch=1", "modifier.swa.bn_batches=2")
    for name, more in (("without", ()), ("with", averages)):
        command = ("strategy=at", *SMALL, "evaluation=none", "test_checkpoints=[]", f"hydra.run.dir={tmp_path / name}")
        outcome = fsr("train", *tiny, *command, *more)
        assert outcome.code == 0, outcome.err
    assert_same(checkpoint(tmp_path / "with")["state_dict"], checkpoint(tmp_path / "without")["state_dict"])


def test_one_network_under_two_names_is_attacked_once(fsr, tiny, tmp_path):
    run = tmp_path / "run"
    command = ("modifier=[swa]", "modifier.swa.start_epoch=1", "modifier.swa.bn_batches=0", "trainer.max_epochs=1")
    outcome = fsr("train", *tiny, *command, f"hydra.run.dir={run}")
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("attacking ") == 2
    (ledger,) = (tmp_path / "runs" / "ledgers").iterdir()  # the second name finds what the first has left
    assert len(list(ledger.glob("*/*.npz"))) == 3
    assert rows(run) == ["natural+none (last, online)", "natural+none (last, swa)"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["modifier=[awp]", "modifier.awp.gamma=-1"], ["gamma", "at least 0", "-1"]),
        (["modifier=[swa]"], ["swa", "75", "the last, 2", "modifier.swa.start_epoch=1"]),
        (["modifier=[awpp]"], ["no modifier named 'awpp'", "'awp'"]),
        (["modifier=[ema]", "modifier.ema.decay=1"], ["decay", "[0, 1)"]),
    ],
    ids=["gamma", "start", "name", "decay"],
)
def test_a_wrong_modifier_gets_one_line(fsr, tiny, overrides, said):
    line = fsr("train", *tiny, "evaluation=none", *overrides).refusal()
    assert [text for text in said if text not in line] == [], line


def test_a_run_stopped_in_mid_epoch_ends_with_the_averages_of_one_never_stopped(warm, tiny, tmp_path):
    modifiers = ("modifier=[awp,ema,swa]", "modifier.swa.start_epoch=1", "modifier.awp.gamma=0.05")
    argv = ("train", *tiny, "strategy=at", *SMALL, *modifiers, "evaluation=none", "test_checkpoints=[]")
    untouched, run = tmp_path / "untouched", tmp_path / "run"
    reply = warm.run(*argv, f"hydra.run.dir={untouched}")
    assert reply.code == 0, reply.err
    stopped = warm.run(*argv, f"hydra.run.dir={run}", stops=[("train", STEPS + 1, "SIGINT")])
    assert stopped.code == 130
    middle = checkpoint(run)
    assert middle["global_step"] == STEPS + 2
    resumed = warm.run("train", f"resume={run}")
    assert resumed.code == 0, resumed.err
    for which in ("last", "best"):
        one, other = checkpoint(run, which), checkpoint(untouched, which)
        assert one["global_step"] == other["global_step"]
        assert_same(one["state_dict"], other["state_dict"])
        for name in ("ema", "swa"):
            assert_same(one["averages"][name], other["averages"][name])
    last = checkpoint(run)
    for name in ("ema", "swa"):  # both went on moving after the stop
        key = "model.backbone.fc.weight"
        assert not torch.equal(last["averages"][name][key], middle["averages"][name][key])


@pytest.mark.slow
def test_two_ranks_perturb_and_average_as_one_process(fsr, tiny, tmp_path):
    # plain SGD at rate 1: after one step, the weights have changed by the gradient at the perturbed ones
    step = (
        "strategy=at", "strategy.attack.random_start=false", "model.batch_norm=false", "optim=sgd_multistep",
        "optim.lr=1", "optim.optimizer.momentum=0", "optim.optimizer.weight_decay=0", "trainer.max_steps=1",
        "dataset.batch_size=33", "dataset.val_size=0", "evaluation=none", "modifier=[awp,ema]",
        "modifier.awp.gamma=0.5",
    )  # fmt: skip
    for name, more in (("one", ()), ("two", TWO), ("unperturbed", ("modifier=[ema]",))):
        step = tuple(word for word in step if not (name == "unperturbed" and word.startswith("modifier.awp")))
        outcome = fsr("train", *tiny, *step, *more, f"hydra.run.dir={tmp_path / name}")
        assert outcome.code == 0, outcome.err
    one, two, unperturbed = (checkpoint(tmp_path / name) for name in ("one", "two", "unperturbed"))
    for name, value in one["state_dict"].items():
        assert torch.allclose(value, two["state_dict"][name], rtol=0, atol=1e-6), name
        assert torch.allclose(one["averages"]["ema"][name], two["averages"]["ema"][name], rtol=0, atol=1e-6), name
    weight = "model.backbone.fc.weight"
    assert (one["state_dict"][weight] - unperturbed["state_dict"][weight]).abs().max() > 1e-3


@pytest.mark.slow
def test_two_ranks_keep_one_average_with_batchnorm(fsr, tiny, tmp_path):
    run = Path(tmp_path / "run")
    command = (
        "strategy=at",
        *SMALL,
        "modifier=[awp,ema,swa]",
        "modifier.swa.start_epoch=1",
        "modifier.swa.bn_batches=2",
    )
    outcome = fsr("train", *tiny, *command, *TWO, "trainer.max_epochs=1", f"hydra.run.dir={run}")
    assert outcome.code == 0, outcome.err
    assert rows(run) == ["at+fsr+awp (last, ema)", "at+fsr+awp (last, online)", "at+fsr+awp (last, swa)"]

"""Families, chains after chains and limits in an evaluation: who is attacked by what, and what is left out."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from fsr_lab.attack.family import Family
from fsr_lab.core.crafting import Policy
from fsr_lab.core.record import CLEAN, NOT_RUN, WRONG, Asked, EvaluationRecord
from fsr_lab.core.threat import Threat
from fsr_lab.evaluation.ledger import Ledger
from fsr_lab.evaluation.run import evaluate

THREAT = Threat(norm="linf", eps=8 / 255)


@dataclass(frozen=True, kw_only=True)
class Breaks:
    """Fools the network below on the images whose number is a multiple of `every`."""

    every: int
    lack: str | None = None
    threat: Threat = THREAT
    policy: Policy = Policy()

    is_random: ClassVar[bool] = False
    exact_on_linear: ClassVar[bool] = False

    def lacks(self, model, x):
        assert not torch.is_grad_enabled()
        assert not any(module.training for module in model.modules())
        model(x)
        return self.lack

    def __call__(self, model, x, y):
        model(x)
        number = (x[:, 0, 0, 0] * 1000).round().long()
        moved = (x + 8 / 255).clamp(0, 1)
        return torch.where((number % self.every == 0)[:, None, None, None], moved, x)


class Reads(nn.Module):
    """Right on an image that lies on a thousandth, and wrong on one that was moved."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x):
        value = x[:, 0, 0, 0] * 1000
        moved = (x[:, 1, 0, 0] - 0.5).abs() > 0.01
        return self.weight * torch.stack((1 - moved.float(), moved.float()), 1) + 0 * value[:, None]


def wrongly_labelled(n, every=10):
    x = torch.full((n, 3, 8, 8), 0.5)
    x[:, 0] = (torch.arange(n) / 1000)[:, None, None]
    y = torch.zeros(n, dtype=torch.int64)
    y[::every] = 1  # wrong unattacked
    return [(x, y)]


DATA = wrongly_labelled(60)


def run(attacks, **options):
    given = {"threat": THREAT, "seed": 0, "chunk": 20, "doctor": False} | options
    return evaluate(Reads().train(), DATA, attacks, **given)


def ran_on(record, name):
    return set(np.flatnonzero(record.outcome[record.attacks.index(name)] != NOT_RUN).tolist())


def broken_by(record, name):
    return set(np.flatnonzero(record.outcome[record.attacks.index(name)] == WRONG).tolist())


def arrays(record):
    return {name: getattr(record, name) for name in ("outcome", "margin", "norm", "ids", "labels", "forwards")}


def assert_equal(one, other):
    for name, values in arrays(one).items():
        assert np.array_equal(values, arrays(other)[name], equal_nan=values.dtype.kind == "f"), name
    for name in ("attacks", "chains", "asked", "limits", "settings"):
        assert getattr(one, name) == getattr(other, name), name


TWO, THREE, FIVE, SEVEN = (Breaks(every=every) for every in (2, 3, 5, 7))
LEFT = {number for number in range(60) if number % 10}
"""The numbers of the images that are right unattacked."""


def without(*factors):
    return {number for number in LEFT if all(number % factor for factor in factors)}


def test_a_chain_begins_where_others_stopped():
    attacks = {"free": TWO, "three": THREE, "five": FIVE, "seven": SEVEN}
    record = run(attacks, chains={"second": ["seven"], "first": ["three", "five"]}, after={"second": ["first", "free"]})
    assert ran_on(record, "free") == set(range(60))
    assert ran_on(record, "three") == LEFT
    assert ran_on(record, "five") == without(3)
    assert ran_on(record, "seven") == without(3, 5, 2)
    assert record.chains == {"first": ("three", "five"), "second": ("three", "five", "free", "seven")}
    assert record.asked["second"] == Asked(("three", "five", "free"), ("seven",))
    assert set(np.flatnonzero(record.worst_case((CLEAN, *record.chains["second"])))) == without(3, 5, 2, 7)


def test_the_ledger_tells_apart_what_went_before(tmp_path):
    attacks = {"three": THREE, "five": FIVE}
    chains = {"one": ["three"], "two": ["five"]}
    apart = run(attacks, chains=chains, ledger=tmp_path)
    behind = run(attacks, chains=chains, after={"two": ["one"]}, ledger=tmp_path)
    assert (ran_on(apart, "five"), ran_on(behind, "five")) == (LEFT, without(3))
    assert_equal(run(attacks, chains=chains, ledger=tmp_path), apart)
    assert_equal(behind, run(attacks, chains=chains, after={"two": ["one"]}))


FAMILY = Family(attacks={"three": THREE, "five": FIVE})


def test_a_family_is_a_chain_of_its_name():
    record = run({"a": FAMILY, "seven": SEVEN})
    assert record.attacks == ("clean", "a/three", "a/five", "seven")
    assert record.chains == {"a": ("a/three", "a/five")}
    assert (ran_on(record, "a/three"), ran_on(record, "a/five")) == (LEFT, without(3))
    assert ran_on(record, "seven") == set(range(60))
    assert record.settings["a/five"] == repr(FIVE)
    assert record.members("a") == ("a/three", "a/five")


def test_families_in_a_chain_and_a_chain_over_everything(tmp_path):
    attacks = {"two": TWO, "a": FAMILY, "b": Family(attacks={"seven": SEVEN, "eleven": Breaks(every=11)})}
    inside = run(attacks, chains={"all": ["a", "b"]}, after={"all": ["two"]})
    waiting = run(attacks, chains={"all": []}, after={"a": ["two"], "b": ["a"], "all": ["b"]}, ledger=tmp_path)
    every = ("two", "a/three", "a/five", "b/seven", "b/eleven")
    assert inside.chains == waiting.chains == {"all": every, "a": every[:3], "b": every}
    assert list(inside.chains) == ["all", "a", "b"]
    assert list(waiting.chains) == ["a", "b", "all"]
    assert ran_on(inside, "b/eleven") == without(2, 3, 5, 7)
    assert np.array_equal(inside.outcome, waiting.outcome)
    shards = {"chains": {"all": []}, "after": {"a": ["two"], "b": ["a"], "all": ["b"]}, "ledger": tmp_path / "shards"}
    for index in (1, 0):
        run(attacks, **shards, shard=(index, 2))
    assert_equal(run(attacks, **shards), waiting)
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 7  # attacks, "clean" and the shards


def test_kept_images_of_a_familys_attack_are_found(tmp_path):
    run({"a": FAMILY}, ledger=tmp_path, keep_images=True)
    (column,) = (name.name.replace("%2F", "/") for name in tmp_path.glob("a%2Ffive *"))
    assert len(list(Ledger(tmp_path, {}).images(column))) == 3


def lacking(text):
    return Breaks(every=2, lack=text)


def test_what_does_not_concern_the_network_is_left_out_and_said(capsys):
    parts = {"three": THREE, "aux": lacking("no heads"), "mask": lacking("no mask"), "more": lacking("no heads")}
    attacks = {"a": Family(attacks=parts), "b": Family(attacks={"x": lacking("no heads")}), "c": lacking("no mask")}
    record = run(attacks | {"five": FIVE}, chains={"all": ["a", "b", "c", "five"]}, limits={"b": 3, "a": 5})
    assert record.attacks == ("clean", "a/three", "five")
    assert record.chains == {"all": ("a/three", "five"), "a": ("a/three",)}
    assert record.asked["all"] == Asked((), ("a", "b", "c", "five"))
    assert record.limits == {"a": 5}
    assert [finding[:3] for finding in record.findings] == [("concerns", "skip", count) for count in (3, 1, 1)]
    assert [finding.attacks for finding in record.findings] == [("a",), ("b",), ("c",)]
    told = [
        "a is run without 3 of its 4 attacks: aux, more (no heads); mask (no mask)",
        "b is left out: no heads",
        "c is left out: no mask",
    ]
    assert [finding.text for finding in record.findings] == told
    assert capsys.readouterr().err.splitlines()[:3] == told
    assert record.settings.keys() == {"a/three", "a/aux", "a/mask", "a/more", "b/x", "c", "five"}


def test_a_chain_of_which_nothing_is_left_is_none():
    record = run({"a": Family(attacks={"x": lacking("no heads")}), "five": FIVE}, after={"a": ["five"]})
    assert (record.attacks, record.chains, record.asked) == (("clean", "five"), {}, {})
    alone = run({"c": lacking("no heads")})
    assert (alone.attacks, alone.findings[0].verdict) == (("clean",), "skip")


def test_looking_for_what_concerns_draws_nothing_and_counts_for_nobody(tmp_path):
    state = torch.get_rng_state()
    record = run({"five": FIVE}, ledger=tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert record.forwards.tolist() == [0, 60]


def firsts(count, numbers, chunk=20):
    """Return the first of the numbers in each chunk."""
    return {
        each for start in range(0, 60, chunk) for each in sorted(numbers & set(range(start, start + chunk)))[:count]
    }


def test_a_limit_is_of_the_samples_left_in_each_chunk(tmp_path):
    attacks = {"three": THREE, "five": FIVE, "seven": SEVEN}
    given = {"chains": {"all": list(attacks)}, "limits": {"five": 4}}
    record = run(attacks, **given)
    assert ran_on(record, "five") == firsts(4, without(3))
    assert ran_on(record, "seven") == without(3) - broken_by(record, "five")
    assert record.limits == {"five": 4}
    for index in (1, 0):
        run(attacks, **given, ledger=tmp_path, shard=(index, 2))
    assert_equal(run(attacks, **given, ledger=tmp_path), record)
    other = run(attacks, **given | {"limits": {"five": 6}}, ledger=tmp_path)
    assert ran_on(other, "five") == firsts(6, without(3))


def test_a_familys_attacks_share_its_limited_samples():
    attacks = {"two": TWO, "a": FAMILY}
    record = run(attacks, after={"a": ["two"]}, limits={"a": 4})
    window = firsts(4, without(2))
    assert ran_on(record, "a/three") == window
    assert ran_on(record, "a/five") == {number for number in window if number % 3}


def test_a_record_with_all_of_it_survives_the_disk_and_its_shards(tmp_path):
    attacks = {"two": TWO, "a": FAMILY}
    given = {"after": {"a": ["two"]}, "limits": {"a": 4}}
    record = run(attacks, **given)
    assert_equal(EvaluationRecord.load(record.save(tmp_path, "it")), record)
    assert_equal(EvaluationRecord.merged([run(attacks, **given, shard=(index, 2)) for index in (0, 1)]), record)
    with pytest.raises(ValueError, match="their limits differ"):
        EvaluationRecord.merged([record, replace(record, limits={"a": 5})])


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"b": 3}, r"limits: no attack or family of this evaluation named 'b'"),
        ({"a": 0}, "expected the limit of 'a' to be a whole number of at least 1, got 0"),
        ({"two": 3}, "'two' stands in no chain, so that its column is of all samples"),
    ],
)
def test_a_limit_of_nothing_is_refused(limits, message):
    with pytest.raises(ValueError, match=message):
        run({"two": TWO, "a": FAMILY}, limits=limits)

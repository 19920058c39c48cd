"""An evaluation's duration beforehand: counts and speeds by hand, and a line where it is long."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from fsr_lab.attack.along_route import AlongRoute
from fsr_lab.attack.on_aux import OnAux
from fsr_lab.attack.pgd import PGD
from fsr_lab.attack.through import Through
from fsr_lab.attack.weighted_sum import WeightedSum
from fsr_lab.core.crafting import Policy
from fsr_lab.core.objective import CrossEntropy, KLFromClean, OnLogits
from fsr_lab.core.passes import Forwards, Passes, forwards_of
from fsr_lab.core.route import Route
from fsr_lab.core.threat import Threat
from fsr_lab.defense.fsr import FSR
from fsr_lab.evaluation import estimate
from fsr_lab.evaluation.counting import Counted
from fsr_lab.evaluation.estimate import Estimate, Speed, Survivors, attacked, estimated, told
from fsr_lab.evaluation.plan import Limit, Work
from fsr_lab.evaluation.run import evaluate
from fsr_lab.model.defended import attach
from fsr_lab.model.tiny_cnn import TinyCNN

THREAT = Threat(norm="linf", eps=8 / 255)
BFLOAT = Policy(dtype="bfloat16")


@dataclass(frozen=True)
class Costs:
    """An attack of known passes."""

    forwards: int
    gradients: int = 0
    elsewhere: tuple[int, int] = (0, 0)
    policy: Policy = Policy()

    def passes(self, num_classes):
        return Passes(self.forwards * num_classes, self.gradients, self.elsewhere)

    def __call__(self, model, x, y):
        return x


def test_passes_add_up():
    both = Passes(3, 2, (1, 0)).plus(Passes(10, 0, (0, 5)))
    assert both == Passes(13, 2, (1, 5))
    assert both.times(3) == Passes(39, 6, (3, 15))
    assert forwards_of(object()) == Forwards(1, 1)


PLAIN, AUX = OnLogits(CrossEntropy()), OnAux(key="p_plus", loss=CrossEntropy())
ROUTED = Through(view=AlongRoute(route=Route(part="f")), objective=PLAIN)


@pytest.mark.parametrize(
    ("objective", "keep", "passes"),
    [
        (PLAIN, "last", (3, 3)),
        (OnLogits(KLFromClean()), "best", (5, 3)),
        (WeightedSum(objectives=(PLAIN, AUX), weights=(1, 1)), "best", (4, 3)),
        (WeightedSum(objectives=(PLAIN, AUX, ROUTED), weights=(1, 0, 1)), "last", (6, 6)),
        (WeightedSum(objectives=(PLAIN, PLAIN), weights=(1, 1)), "last", (6, 6)),
        (ROUTED, "best", (6, 3)),
    ],
)
def test_an_objective_costs_no_more_than_it_tells(objective, keep, passes):
    model = Counted(attach(TinyCNN(num_classes=4), {"block2": FSR}, (3, 8, 8), 4))
    attack = PGD(threat=THREAT, steps=3, relative_step=0.5, random_start=False, objective=objective, keep=keep)
    attack(model, torch.rand(1, 3, 8, 8), torch.zeros(1, dtype=torch.int64))
    assert (model.forwards, model.backwards) == passes
    most = attack.passes(4)
    assert model.forwards <= most.forwards <= model.forwards + forwards_of(objective).once + 1
    assert model.backwards == most.gradients


@pytest.mark.parametrize(
    ("work", "samples"),
    [
        (Work(("a",)), 1100),
        (Work(("a",), ("clean",)), 880),
        (Work(("a",), ("clean", "b")), 330),
        (Work(("a",), ("clean", "b"), Limit(100, ("clean",))), 230),
        (Work(("a",), ("clean",), Limit(450, ("clean",))), 800 + 80),
    ],
)
def test_who_is_left_decides_how_many_are_attacked(work, samples):
    assert attacked(work, (500, 500, 100), Survivors(0.8, 0.3)) == pytest.approx(samples)


def test_costs_are_counts_times_speeds():
    attacks = {
        "a": Costs(10, 20), "b": Costs(5, policy=BFLOAT), "c": Costs(0, 0, (7, 3)), "d": lambda model, x, y: x,
        "e": Costs(1000),
    }  # fmt: skip
    asked = []

    def speed(policy, with_gradient):
        asked.append((policy, with_gradient))
        return Speed(0.5, 2.0) if policy == BFLOAT else Speed(1.0, 3.0)

    found = estimated(attacks, {"a": 10, "b": 4, "c": 2, "d": 9, "e": 0}, 2, speed)
    assert asked == [(Policy(), True), (BFLOAT, False), (Policy(), True)]
    assert found == Estimate(200 + 40 + 14, 200 + 6, 200 + 20 + 14, 600 + 18, ("d",))
    assert found.seconds == 852


@pytest.mark.parametrize(
    ("made", "survivors", "line"),
    [
        (
            Estimate(3.2e6, 2.9e6, 672, 1363), Survivors(0.8, 0.31, "under PGD-10 on 64 images"),
            "about 34 min: at most 3.2 million forwards and 2.9 million gradients at 0.21 and 0.47 ms each "
            "(if as many withstand as under PGD-10 on 64 images, 31 %)",
        ),
        (
            Estimate(40_000, 0, 20_000, 0, ("mine", "yours")), Survivors(),
            "about 5.6 h: at most 40,000 forwards at 5e+02 ms each (if every sample withstands); not counted, as they "
            "tell no budget: mine, yours",
        ),
    ],
)  # fmt: skip
def test_it_is_told_in_a_line(made, survivors, line):
    assert told(made, survivors) == line


@pytest.fixture
def model():
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 4))


@pytest.fixture
def data(model):
    x = torch.rand(40, 3, 8, 8)
    return [(x, model(x).argmax(1))]


PGD20 = PGD(threat=THREAT, steps=20, relative_step=0.1, random_start=False)


def run(model, data, **options):
    given = {"threat": THREAT, "seed": 0, "chunk": 6} | options
    return evaluate(model, data, {"pgd": PGD20, "other": PGD20}, chains={"one": ["pgd"], "two": ["other"]}, **given)


def test_a_short_evaluation_is_quiet(model, data, capsys):
    run(model, data)
    assert "about" not in capsys.readouterr().err


def test_a_long_one_is_announced_once(model, data, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(estimate, "measured", lambda *args, **options: Speed(0.1, 0.2))
    line = "about 8 min: at most 1,680 forwards and 1,600 gradients at 1e+02 and 2e+02 ms each (if "
    run(model, data, ledger=tmp_path)
    assert f"{line}as many withstand as under PGD-10 on 40 images, " in capsys.readouterr().err
    run(model, data, ledger=tmp_path)  # where everything is known there is nothing to wait for
    run(model, data, ledger=tmp_path / "other", shard=(1, 2))
    assert "about" not in capsys.readouterr().err
    run(model, data, doctor=False)
    assert f"{line}every sample withstands)" in capsys.readouterr().err


def test_a_speed_is_measured_without_a_trace(model, data):
    x, y = data[0]
    state = torch.get_rng_state()
    found = estimate.measured(nn.Sequential(model, nn.Dropout()).train(), Policy(), x, y, with_gradient=True)
    assert 0 < found.forward < 1
    assert 0 <= found.gradient < 1
    assert torch.equal(torch.get_rng_state(), state)
    assert estimate.measured(model, BFLOAT, x, y, with_gradient=False).gradient == 0

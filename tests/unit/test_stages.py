"""Stages: where each begins, whose image is kept, and the attacks that are built of them."""

from dataclasses import dataclass, replace

import pytest
import torch

from fsr_lab.attack.along_route import AlongRoute
from fsr_lab.attack.family import Family
from fsr_lab.attack.pgd import PGD
from fsr_lab.attack.restarts import Restarts
from fsr_lab.attack.spsa import SPSA
from fsr_lab.attack.stages import Stages
from fsr_lab.attack.through import Through
from fsr_lab.core.crafting import Policy
from fsr_lab.core.losses import margin
from fsr_lab.core.objective import CrossEntropy, Margin, MarginTerm, OnLogits
from fsr_lab.core.route import Route
from fsr_lab.core.threat import Threat
from fsr_lab.defense.fsr import FSR
from fsr_lab.model.defended import attach
from fsr_lab.model.tiny_cnn import TinyCNN

LINF = Threat(norm="linf", eps=0.05)
PGD5 = PGD(threat=LINF, steps=5, relative_step=0.25, random_start=True)


@dataclass(frozen=True, kw_only=True)
class Moved:
    """Adds `by` to where it begins, and notes that."""

    by: float
    threat: Threat = LINF
    policy: Policy = Policy()
    is_random: bool = False
    exact_on_linear: bool = True
    begun: tuple = ([],)

    def __call__(self, model, x, y):
        return self.run_from(x, model, x, y)

    def run_from(self, start, model, x, y):
        self.begun[0].append(start.clone())
        return start + self.by


def hill(x):
    """The margin of class 0 is the mean's square, less 1: right outside of (-1, 1)."""
    value = x.mean((1, 2, 3))
    return torch.stack([value**2 - 1, torch.zeros_like(value)], dim=1)


def test_each_stage_begins_where_the_one_before_it_stopped_and_the_smallest_margin_is_kept():
    x, y = torch.tensor([0.0, 3.0, -2.0, -1.5]).reshape(4, 1, 1, 1), torch.zeros(4, dtype=torch.int64)
    begun = []
    stages = Stages(attacks=[Moved(by=by, begun=(begun,)) for by in (1.0, -2.0, 1.5)])
    found = stages(hill, x, y).flatten().tolist()
    # by hand: 1 -> -1 -> 0.5; 4 -> 2 -> 3.5; -1 -> -3 -> -1.5; -0.5 -> -2.5 -> -1
    assert found == [0.5, 2.0, -1.0, -0.5]
    for start, by in zip(begun, (0.0, 1.0, -1.0), strict=True):
        assert torch.equal(start, x + by)


def test_of_equal_margins_the_last_stages_image_is_kept():
    x, y = torch.tensor([1.0]).reshape(1, 1, 1, 1), torch.tensor([0])
    assert Stages(attacks=[Moved(by=0.0), Moved(by=-2.0)])(hill, x, y).item() == -1.0


def test_one_stage_is_the_attack_and_two_are_its_run_from(bumpy):
    x, y = torch.rand(6, 3, 8, 8).double(), torch.zeros(6, dtype=torch.int64)
    torch.manual_seed(2)
    once = PGD5(bumpy, x, y)
    second = replace(PGD5, objective=OnLogits(Margin()))
    twice = second.run_from(once, bumpy, x, y)
    for stages, wanted in (([PGD5], once), ([PGD5, second], twice)):
        torch.manual_seed(2)
        found = Stages(attacks=stages)(bumpy, x, y)
        better = margin(bumpy(wanted), y) <= margin(bumpy(once), y)
        assert better.any()
        assert torch.equal(found, torch.where(better[:, None, None, None], wanted, once))


def test_a_margin_decomposition_is_two_stages_twice(trained):
    model, x, y = trained
    full = replace(PGD5, objective=OnLogits(Margin()))
    halves = {
        term: Stages(attacks=[replace(PGD5, objective=OnLogits(MarginTerm(term=term))), full])
        for term in ("true", "wrong")
    }
    attack = Family(attacks=halves)
    x_adv = attack(model, x, y)
    assert LINF.measure(x_adv, x).max() <= LINF.eps + 1e-9
    assert (model(x_adv).argmax(1) == y).sum() < (model(x).argmax(1) == y).sum()
    assert hash(attack) == hash(replace(attack))


def test_a_continuation_ends_on_the_deployed_mask(batch):
    model, (x, y) = attach(TinyCNN(num_classes=4), {"block2": FSR}, (3, 8, 8), 4).eval(), batch
    with torch.no_grad():
        model.defenses["block2"].separation[-1].weight.mul_(300)
    y = model(x).argmax(1)
    plain = replace(PGD5, random_start=False)
    soft = [
        replace(plain, objective=Through(
            view=AlongRoute(route=Route(tau=tau)), objective=OnLogits(CrossEntropy())
        ))
        for tau in (5.0, 1.0)
    ]  # fmt: skip
    stages = Stages(attacks=[*soft, plain])
    steps = [soft[0](model, x, y)]
    steps.append(soft[1].run_from(steps[0], model, x, y))
    steps.append(plain.run_from(steps[1], model, x, y))
    margins = torch.stack([margin(model(step), y) for step in steps])
    assert torch.equal(margin(model(stages(model, x, y)), y), margins.amin(0))
    assert stages.lacks(model, x) is None
    assert stages.lacks(model.backbone, x) == "no defence of the network knows the route tau"


def test_a_refinement_goes_on_from_the_best_white_box_point(trained):
    model, x, y = trained
    white = Restarts(attack=replace(PGD5, threat=Threat(norm="linf", eps=0.02)), restarts=2)
    refined = Stages(attacks=[white, SPSA(threat=white.threat, queries=650, directions=16)])
    margins = []
    for attack in (white, refined):
        torch.manual_seed(0)
        margins.append(margin(model(attack(model, x, y)), y))
    assert (margins[1] <= margins[0]).all()
    assert (margins[1] < margins[0]).any()


def test_what_it_tells_of_itself():
    still = replace(PGD5, random_start=False)
    stages = Stages(attacks=[still, PGD5])
    assert (stages.threat, stages.policy, stages.is_random, stages.exact_on_linear) == (LINF, Policy(), True, False)
    assert not Stages(attacks=[still, still]).is_random
    assert stages == Stages(attacks=(still, PGD5))
    assert hash(stages) == hash(replace(stages))
    assert repr(stages) == f"Stages(attacks=({still!r}, {PGD5!r}))"


def test_stages_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="at least one attack"):
        Stages(attacks=[])
    with pytest.raises(ValueError, match=r"attacks of one threat, got linf 0\.05, linf 0\.1"):
        Stages(attacks=[PGD5, replace(PGD5, threat=Threat(norm="linf", eps=0.1))])
    with pytest.raises(ValueError, match="attacks of one policy, got bfloat16, float32"):
        Stages(attacks=[PGD5, replace(PGD5, policy=Policy(dtype="bfloat16"))])
    with pytest.raises(ValueError, match=r"^Restarts\(.*only the first stage may"):
        Stages(attacks=[PGD5, Restarts(attack=PGD5, restarts=2)])

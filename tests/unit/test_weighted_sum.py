"""Weighted sums of objectives: values by hand, what is prepared, aimed at and missed, and what they cost."""

import math
from itertools import pairwise

import pytest
import torch

from fsr_lab.attack.along_route import AlongRoute
from fsr_lab.attack.on_aux import OnAux, TowardsAux
from fsr_lab.attack.pgd import PGD
from fsr_lab.attack.through import Through
from fsr_lab.attack.weighted_sum import WeightedSum
from fsr_lab.core.objective import CrossEntropy, KLFromClean, Margin, OnLogits, TargetedMargin
from fsr_lab.core.route import Route
from fsr_lab.core.targets import AnyWrong, Ranked, Towards
from fsr_lab.core.threat import Threat
from fsr_lab.defense.cas import CAS
from fsr_lab.defense.fsr import FSR
from fsr_lab.defense.sap import SAP
from fsr_lab.evaluation.counting import Counted
from fsr_lab.model.defended import attach
from fsr_lab.model.tiny_cnn import TinyCNN

LINF = Threat(norm="linf", eps=8 / 255)
PLAIN = OnLogits(CrossEntropy())
HEADS = tuple(OnAux(key=key, loss=CrossEntropy(), of=of)
              for key, of in (("p_plus", "true"), ("p_minus", "wrong"), ("p_tilde", "true")))  # fmt: skip


def pgd(objective, **options):
    return PGD(**({"threat": LINF, "steps": 4, "relative_step": 0.4, "random_start": False} | options),
               objective=objective)  # fmt: skip


def network(**defenses):
    return attach(TinyCNN(num_classes=4), defenses, (3, 8, 8), 4).eval()


def pixels(x):
    """Return logits that are three pixels of an image."""
    return x[:, 0, 0, :3]


IMAGE = torch.zeros(1, 3, 8, 8)
IMAGE[0, 0, 0, :3] = torch.tensor([2.0, 0.5, 1.0])


def test_the_value_is_the_sum_by_hand():
    objective = WeightedSum(objectives=[PLAIN, OnLogits(Margin())], weights=[2, -0.5])
    ce = math.log(math.exp(2) + math.exp(0.5) + math.exp(1)) - 2
    assert objective(pixels, IMAGE, torch.tensor([0]), {}).item() == pytest.approx(2 * ce + 0.5 * 1.0, rel=1e-6)


def test_each_reads_what_it_prepared_itself(batch):
    x, y = batch
    model = network(block1=FSR)
    parts = (OnLogits(KLFromClean()), OnAux(key="p_plus", loss=KLFromClean()),
             Towards(loss=TargetedMargin(), target=Ranked(rank=-1)))  # fmt: skip
    objective = WeightedSum(objectives=parts, weights=(1.0, 3.0, 0.25))
    prepared = objective.prepare(model, x, y)
    assert all(len(value) == 8 for value in prepared.values())
    alone = [part(model, 1 - x, y, part.prepare(model, x, y)) for part in parts]
    wanted = alone[0] + 3 * alone[1] + 0.25 * alone[2]
    torch.testing.assert_close(objective(model, 1 - x, y, prepared), wanted)
    keep = torch.tensor([6, 1, 3])
    found = objective(model, (1 - x)[keep], y[keep], {name: value[keep] for name, value in prepared.items()})
    torch.testing.assert_close(found, wanted[keep])


def test_what_weighs_nothing_is_not_computed_and_the_attack_is_the_plain_one(batch):
    x, y = batch
    for model in (network(block1=FSR, block2=FSR), network(block2=CAS)):
        counted = Counted(model)
        neutral = WeightedSum(objectives=[PLAIN, OnAux(key="unknown", loss=CrossEntropy())], weights=[1.0, 0.0])
        assert torch.equal(pgd(neutral)(counted, x, y), pgd(PLAIN)(model, x, y))
        assert counted.forwards == counted.backwards == 4 * 8


@pytest.mark.parametrize("keep", ["last", "best"])
def test_one_pass_serves_all_that_read_auxiliary_tensors(keep, batch):
    x, y = batch
    counted = Counted(network(block1=FSR, block2=FSR))
    objective = WeightedSum(objectives=[PLAIN, *HEADS], weights=[1, 0.5, -0.5, 2])
    assert objective.reads_aux
    found = pgd(objective, keep=keep)(counted, x, y)
    assert (counted.forwards, counted.backwards) == ((4 + (keep == "best")) * 8, 4 * 8)
    by_hand = x
    for _ in range(4):  # every objective with a pass of its own
        image = by_hand.clone().requires_grad_()
        plus, minus, tilde = (each(counted.model, image, y, {}) for each in HEADS)
        value = PLAIN(counted.model, image, y, {}) + 0.5 * plus - 0.5 * minus + 2 * tilde
        (gradient,) = torch.autograd.grad(value.sum(), image)
        by_hand = LINF.project(LINF.step(by_hand, gradient, 0.4 * LINF.eps), x)
    if keep == "last":
        torch.testing.assert_close(found, by_hand, atol=1e-6, rtol=0)
        assert not torch.equal(found, pgd(PLAIN)(counted, x, y))


def test_every_step_draws_anew(batch):
    """SAP draws in every pass: of one draw for all steps the random state would tell."""
    x, y = batch
    model = network(**{"block1.conv": SAP, "block2": FSR})
    drawn = []
    model.defenses["block1.conv"].register_forward_hook(lambda m, i, out: drawn.append((out.features != 0).clone()))
    pgd(WeightedSum(objectives=[PLAIN, *HEADS], weights=[1, 1, -1, 1]))(model, x, y)
    assert len(drawn) == 4
    assert all(not torch.equal(one, two) for one, two in pairwise(drawn))


def test_every_part_that_leads_to_a_class_is_led_to_another():
    view = AlongRoute(route=Route(part="f"))

    def parts(target):
        towards = Towards(loss=TargetedMargin(), target=target)
        return (towards, TowardsAux(key="p_tilde", loss=TargetedMargin(), target=target),
                Through(view=view, objective=towards), PLAIN, Through(view=view, objective=PLAIN))  # fmt: skip

    def nested(target):
        inner = WeightedSum(objectives=parts(target), weights=[1, 2, 3, 4, 5])
        return WeightedSum(objectives=[PLAIN, inner], weights=[1, 1])

    assert nested(Ranked(rank=1)).aimed(Ranked(rank=2)) == nested(Ranked(rank=2))
    assert not nested(Ranked(rank=1)).is_random
    assert nested(AnyWrong()).is_random


def test_it_tells_what_the_first_part_misses(batch):
    model = network(block1=CAS)
    probe, plus = OnAux(key="p_probe", loss=CrossEntropy()), OnAux(key="p_plus", loss=CrossEntropy())
    view = Through(view=AlongRoute(route=Route(part="f")), objective=PLAIN)
    cases = [
        ([PLAIN, probe], None),
        ([PLAIN, probe, plus, view], "no defence of the network files 'p_plus'"),
        ([view, plus], "no defence of the network knows the route f"),
    ]
    for objectives, lack in cases:
        objective = WeightedSum(objectives=objectives, weights=[1] * len(objectives))
        assert objective.lacks(model, batch[0]) == lack
        assert pgd(objective).lacks(model, batch[0]) == lack
        assert not pgd(objective).exact_on_linear
    assert pgd(PLAIN).lacks(model, batch[0]) is None


@pytest.mark.parametrize("weights", [[1.0], [0, 0.0], []])
def test_weights_that_do_not_fit_are_refused(weights):
    with pytest.raises(ValueError, match="expected a weight for each of 2 objectives, and one that is not 0, got"):
        WeightedSum(objectives=[PLAIN, PLAIN], weights=weights)

"""Steer: goals and distances by hand, a mask that gets there, and constant masks that it leaves alone."""

import functools
import math

import pytest
import torch
from torch.nn import functional

from fsr_lab.attack.another_class import drawn_of_another_class, next_of_another_class
from fsr_lab.attack.mask_steering import Steer
from fsr_lab.attack.pgd import PGD
from fsr_lab.attack.weighted_sum import WeightedSum
from fsr_lab.core.objective import CrossEntropy, OnLogits
from fsr_lab.core.threat import Threat
from fsr_lab.core.types import Forward
from fsr_lab.defense.fsr import FSR
from fsr_lab.model.defended import attach
from fsr_lab.model.tiny_cnn import TinyCNN

PGD10 = PGD(threat=Threat(norm="linf", eps=0.1), steps=10, relative_step=0.25, random_start=False)


def defended(**options):
    model = attach(TinyCNN(num_classes=4), {"block2": functools.partial(FSR, **options)}, (3, 8, 8), 4).eval()
    with torch.no_grad():  # at initialisation scores are next to nought
        for defense in model.defenses.values():
            if defense.separation is not None:
                defense.separation[-1].weight.mul_(300)
    return model


class Scores:
    """Files scores that are the pixels themselves, and masks that are their sigmoids; at two points, or a bare mask."""

    defenses = dict.fromkeys("abcd")

    def __call__(self, x):
        return x.flatten(1)[:, :2]

    def forward_with_aux(self, x, targets=None):
        first = {"score": x, "mask": x.sigmoid()}
        second = {"score": 2 * x[:, :, :1], "mask": (2 * x[:, :, :1]).sigmoid()}
        return Forward(self(x), {"a": first, "b": second, "c": {"mask": x.sigmoid() ** 2}, "d": {}})


def by_hand(form, points, goals):
    """Return one sample's value: a mean over units, then over points; numbers, not tensors."""
    means = []
    for scores, targets in zip(points, goals, strict=True):
        values = []
        for r, goal in zip(scores, targets, strict=True):
            if form == "bce":
                m = 1 / (1 + math.exp(-r))
                values.append(goal * math.log(m) + (1 - goal) * math.log(1 - m))
            else:
                values.append(-math.log1p(math.exp(-(2 * goal - 1) * r)))
        means.append(sum(values) / len(values))
    return sum(means) / len(means)


@pytest.mark.parametrize("form", ["bce", "logistic"])
@pytest.mark.parametrize("goal", ["ones", "zeros", "swap", "other"])
def test_the_value_is_minus_the_mean_distance_from_the_goal(goal, form, monkeypatch):
    model, x, x_adv = Scores(), torch.randn(3, 1, 2, 3).double(), torch.randn(3, 1, 2, 3).double()
    y = torch.tensor([0, 0, 1])
    steer = Steer(goal=goal, form=form)
    if form == "bce":  # point c files no score, and is left out here to keep the sum over points short
        whole = model.forward_with_aux
        monkeypatch.setattr(model, "forward_with_aux", lambda x: whole(x)._replace(
            aux={point: aux for point, aux in whole(x).aux.items() if point != "c"}
        ))  # fmt: skip
    found = steer(model, x_adv, y, steer.prepare(model, x, y))
    other = [2, 2, 0]
    for row in range(3):
        points = [x_adv[row].flatten().tolist(), (2 * x_adv[row][:, :1]).flatten().tolist()]
        sources = [x, 2 * x[:, :, :1]]
        goals = [
            {
                "ones": torch.ones_like(source[row]), "zeros": torch.zeros_like(source[row]),
                "swap": 1 - source[row].sigmoid(), "other": source[other[row]].sigmoid(),
            }[goal].flatten().tolist()
            for source in sources
        ]  # fmt: skip
        assert found[row].item() == pytest.approx(by_hand(form, points, goals))


def test_who_has_no_other_class_in_the_batch_swaps():
    model, x, y = Scores(), torch.randn(4, 1, 2, 3), torch.zeros(4, dtype=torch.int64)
    found = Steer(goal="other").prepare(model, x, y)
    wanted = Steer(goal="swap").prepare(model, x, y)
    assert found.keys() == wanted.keys() == {"0", "1"}
    assert all(torch.equal(found[key], wanted[key]) for key in found)


def test_the_next_image_of_another_class_is_found_round_the_end():
    assert next_of_another_class(torch.tensor([0, 0, 1, 1, 2, 0])).tolist() == [2, 2, 4, 4, 5, 2]
    assert next_of_another_class(torch.tensor([3, 3])).tolist() == [0, 1]
    assert next_of_another_class(torch.tensor([3])).tolist() == [0]


def test_every_image_of_another_class_is_drawn_as_often():
    y = torch.tensor([0, 0, 1, 2])
    drawn = torch.stack([drawn_of_another_class(y) for _ in range(3000)])
    shares = functional.one_hot(drawn, 4).double().mean(0)
    wanted = torch.tensor([[0, 0, 1 / 2, 1 / 2], [0, 0, 1 / 2, 1 / 2], [1 / 3, 1 / 3, 0, 1 / 3], [1 / 3] * 3 + [0]])
    assert ((shares - wanted).abs() < 0.04).all()
    assert (shares[wanted == 0] == 0).all()
    assert drawn_of_another_class(torch.tensor([1, 1, 1])).tolist() == [0, 1, 2]


@pytest.mark.parametrize("form", ["bce", "logistic"])
@pytest.mark.parametrize("goal", ["ones", "zeros", "swap", "other"])
def test_the_mask_is_led_to_the_goal(goal, form, batch):
    model, (x, y) = defended(tau=1.0), batch
    mask = model.forward_with_aux(x).aux["block2"]["mask"]
    goals = {
        "ones": torch.ones_like(mask), "zeros": torch.zeros_like(mask), "swap": 1 - mask, "other": mask.roll(-1, 0),
    }  # fmt: skip
    x_adv = PGD(**vars(PGD10) | {"objective": Steer(goal=goal, form=form)})(model, x, y)
    after = model.forward_with_aux(x_adv).aux["block2"]["mask"]
    weight, is_high = (2 * goals[goal] - 1).abs(), goals[goal] > 0.5
    agreement = [(weight * ((m > 0.5) == is_high)).sum() / weight.sum() for m in (mask, after)]
    assert agreement[1] > agreement[0] + 0.01


def test_only_the_logistic_form_sees_a_saturated_mask():
    class Saturated(Scores):
        def forward_with_aux(self, x, targets=None):
            return Forward(self(x), {"a": {"score": x, "mask": (x / 1e-3).sigmoid()}})

    x, y = torch.tensor([0.5, -0.5, 0.2, -3.0]).reshape(1, 1, 2, 2), torch.tensor([0])
    gradients = {}
    for form in ("bce", "logistic"):
        image, steer = x.clone().requires_grad_(), Steer(goal="swap", form=form)
        value = steer(Saturated(), image, y, steer.prepare(Saturated(), x, y))
        (gradients[form],) = torch.autograd.grad(value.sum(), image)
    assert (gradients["bce"] == 0).all()
    assert torch.equal(gradients["logistic"].sign(), -x.sign())


@pytest.mark.parametrize("mask", ["fixed_random", "zeros", "magnitude"])
@pytest.mark.parametrize("random_start", [False, True])
def test_a_mask_that_follows_no_image_leaves_plain_pgd(mask, random_start, batch):
    model, (x, y) = defended(mask=mask), batch
    plain = PGD(**vars(PGD10) | {"random_start": random_start})
    steered = WeightedSum(
        objectives=[OnLogits(CrossEntropy()), Steer(goal="swap", form="bce")], weights=[1, 10]
    )  # fmt: skip
    found = []
    for attack in (plain, PGD(**vars(plain) | {"objective": steered})):
        torch.manual_seed(3)
        found.append(attack(model, x, y))
    assert torch.equal(*found)
    assert not torch.equal(found[0], x)


def test_it_tells_what_a_network_lacks(batch, linear):
    x, y = batch
    assert Steer(goal="ones").lacks(defended(), x) is None
    assert Steer(goal="ones", form="bce").lacks(defended(mask="zeros"), x) is None
    assert Steer(goal="ones").lacks(defended(mask="zeros"), x) == "no defence of the network files 'score'"
    assert "files no auxiliary tensor" in Steer(goal="ones").lacks(linear, x)
    with pytest.raises(ValueError, match="no defence of the network files 'score'"):
        PGD(**vars(PGD10) | {"objective": Steer(goal="ones")})(defended(mask="zeros"), x, y)


@pytest.mark.parametrize("options", [{"goal": "half"}, {"goal": "ones", "form": "mse"}])
def test_an_unknown_option_is_refused(options):
    with pytest.raises(ValueError, match=r"no (goal|form) named '(half|mse)'"):
        Steer(**options)

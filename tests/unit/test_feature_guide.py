"""Guide: squared distances by hand, to whom each sample is led, and features that get nearer or farther."""

from dataclasses import replace

import pytest
import torch

from fsr_lab.attack.feature_guide import Guide
from fsr_lab.attack.pgd import PGD
from fsr_lab.attack.restarts import Restarts
from fsr_lab.core.threat import Threat
from fsr_lab.core.types import Forward
from fsr_lab.defense.fsr import FSR
from fsr_lab.model.defended import attach
from fsr_lab.model.tiny_cnn import TinyCNN

PGD10 = PGD(threat=Threat(norm="linf", eps=0.1), steps=10, relative_step=0.25, random_start=True)


class Two:
    """Files a feature at each of two points: the image, and its first row three times as large."""

    defenses = dict.fromkeys("abc")

    def __call__(self, x):
        return x.flatten(1)[:, :2]

    def forward_with_aux(self, x, targets=None):
        return Forward(self(x), {"a": {"f": x}, "b": {"f": 3 * x[:, :, :1]}, "c": {"g": x}})


@pytest.fixture
def images():
    return torch.rand(4, 1, 2, 2).double(), torch.rand(4, 1, 2, 2).double()


def squared(left, right):
    return sum((a - b) ** 2 for a, b in zip(left.flatten().tolist(), right.flatten().tolist(), strict=True))


def test_away_is_the_mean_squared_distance_to_ones_own_feature(images):
    (x, x_adv), y = images, torch.tensor([0, 1, 2, 2])
    guide = Guide(key="f", goal="away")
    found = guide(Two(), x_adv, y, guide.prepare(Two(), x, y))
    for row in range(4):
        first = squared(x_adv[row], x[row]) / 4
        second = 9 * squared(x_adv[row, :, :1], x[row, :, :1]) / 2
        assert found[row].item() == pytest.approx((first + second) / 2)


def test_other_is_minus_the_distance_to_a_guide_of_another_class(images):
    (x, x_adv), y = images, torch.tensor([0, 1, 2, 2])
    guide, seen = Guide(key="f"), [set() for _ in range(4)]
    for _ in range(40):
        found = guide(Two(), x_adv, y, guide.prepare(Two(), x, y))
        for row in range(4):
            wanted = [
                -(squared(x_adv[row], other) / 4 + 9 * squared(x_adv[row, :, :1], other[:, :1]) / 2) / 2 for other in x
            ]
            place = min(range(4), key=lambda column: abs(found[row].item() - wanted[column]))
            assert found[row].item() == pytest.approx(wanted[place])
            seen[row].add(place)
    assert seen == [{1, 2, 3}, {0, 2, 3}, {0, 1}, {0, 1}]


def test_who_has_no_guide_is_led_away(images):
    (x, x_adv), y = images, torch.zeros(4, dtype=torch.int64)
    guide, away = Guide(key="f"), Guide(key="f", goal="away")
    found = guide(Two(), x_adv, y, guide.prepare(Two(), x, y))
    assert torch.equal(found, away(Two(), x_adv, y, away.prepare(Two(), x, y)))
    assert (found > 0).all()


def test_what_is_prepared_has_the_batch_first(images):
    (x, x_adv), y = images, torch.tensor([0, 1, 2, 2])
    guide = Guide(key="f")
    prepared = guide.prepare(Two(), x, y)
    keep = torch.tensor([3, 1])
    part = guide(Two(), x_adv[keep], y[keep], {name: value[keep] for name, value in prepared.items()})
    assert torch.equal(part, guide(Two(), x_adv, y, prepared)[keep])


@pytest.mark.parametrize("key", ["f_tilde", "f_plus"])
def test_features_follow_the_guide(key, batch):
    model = attach(TinyCNN(num_classes=4), {"block2": FSR}, (3, 8, 8), 4).eval()
    x, y = batch[0][[0, 1]], batch[1][[0, 1]]  # of two samples, each is the other's guide

    def features(x):
        return model.forward_with_aux(x).aux["block2"][key]

    found = PGD(**vars(PGD10) | {"objective": Guide(key=key)})(model, x, y)
    to_guide = [(features(image) - features(x).flip(0)).square().sum((1, 2, 3)) for image in (x, found)]
    assert (to_guide[1] < 0.9 * to_guide[0]).all()
    found = PGD(**vars(PGD10) | {"objective": Guide(key=key, goal="away")})(model, x, y)
    noise = PGD10.threat.random_start(x)
    away = [(features(image) - features(x)).square().sum((1, 2, 3)) for image in (noise, found)]
    assert (away[1] > 2 * away[0]).all()


def test_restarts_try_other_guides():
    still = replace(PGD10, random_start=False)
    with pytest.raises(ValueError, match="draws nothing"):
        Restarts(attack=replace(still, objective=Guide(goal="away")), restarts=2)
    assert Restarts(attack=replace(still, objective=Guide()), restarts=2).is_random


def test_it_tells_what_a_network_lacks(batch, linear):
    model = attach(TinyCNN(num_classes=4), {"block2": FSR}, (3, 8, 8), 4).eval()
    assert Guide().lacks(model, batch[0]) is None
    assert Guide(key="p_probe").lacks(model, batch[0]) == "no defence of the network files 'p_probe'"
    assert "no auxiliary tensor" in Guide().lacks(linear, batch[0])
    with pytest.raises(ValueError, match="no goal named 'near'"):
        Guide(goal="near")

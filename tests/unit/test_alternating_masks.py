"""Alternating masks: rounds by hand, whose image is kept, and what a round costs."""

from dataclasses import replace

import pytest
import torch

from fsr_lab.attack.alternating_masks import AlternatingMasks
from fsr_lab.attack.input_diversity import InputDiversity
from fsr_lab.attack.on_aux import OnAux
from fsr_lab.attack.pgd import PGD
from fsr_lab.core.losses import cross_entropy, margin
from fsr_lab.core.objective import CrossEntropy
from fsr_lab.core.route import Route
from fsr_lab.core.threat import Threat
from fsr_lab.defense.cas import CAS
from fsr_lab.defense.fsr import FSR
from fsr_lab.evaluation.counting import Counted
from fsr_lab.model.defended import attach
from fsr_lab.model.tiny_cnn import TinyCNN

PGD3 = PGD(threat=Threat(norm="linf", eps=0.1), steps=3, relative_step=0.2, random_start=False)


@pytest.fixture
def model():
    """Two defended points whose masks move with the image."""
    model = attach(TinyCNN(num_classes=4), {"block1": FSR, "block2": FSR}, (3, 8, 8), 4).double().eval()
    with torch.no_grad():
        for defense in model.defenses.values():
            defense.separation[-1].weight.mul_(300)
            defense.recalibration[-1].weight.mul_(300)
    return model


@pytest.fixture
def images(model):
    x = torch.rand(8, 3, 8, 8).double()
    return x, model(x).argmax(1)


def one_round(model, start, x, y, steps=3, size=0.02, eps=0.1):
    """Signed steps on the cross-entropy with the masks of `start`, written out."""
    with torch.no_grad():
        aux = model.forward_with_aux(start).aux
    frozen = model.routed({point: Route(mask=named["mask"]) for point, named in aux.items()})
    image = start
    for _ in range(steps):
        image = image.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(frozen(image), y).sum(), image)
        image = (image.detach() + size * gradient.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    return image


def test_rounds_by_hand(model, images):
    x, y = images
    ends = [one_round(model, x, x, y)]
    for _ in range(3):
        ends.append(one_round(model, ends[-1], x, y))
    for rounds in (1, 2, 4):
        margins = torch.stack([margin(model(end), y) for end in ends[:rounds]])
        wanted = torch.stack(ends[:rounds])[margins.argmin(0), torch.arange(8)]
        found = AlternatingMasks(attack=PGD3, rounds=rounds)(model, x, y)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    masks = [model.forward_with_aux(end).aux["block2"]["mask"] for end in (ends[0], ends[1])]
    assert (masks[0] - masks[1]).abs().max() > 0.1


def test_it_is_neither_plain_pgd_nor_one_frozen_mask(model, images):
    x, y = images
    found = AlternatingMasks(attack=PGD3, rounds=4)(model, x, y)
    assert not torch.equal(found, replace(PGD3, steps=12)(model, x, y))
    assert not torch.equal(found, AlternatingMasks(attack=replace(PGD3, steps=12), rounds=1)(model, x, y))
    assert (margin(model(found), y) < margin(model(x), y)).all()


def test_it_goes_on_from_any_point(model, images):
    x, y = images
    start = PGD3.threat.random_start(x)
    found = AlternatingMasks(attack=PGD3, rounds=1).run_from(start, model, x, y)
    torch.testing.assert_close(found, one_round(model, start, x, y), rtol=0, atol=1e-12)


def test_outcomes_are_the_deployed_networks(model, images):
    """A round that keeps its best iterate keeps it by the network's own logits, not by those under frozen masks."""
    x, y = images
    steps = [one_round(model, x, x, y, steps=steps) for steps in (1, 2, 3)]
    margins = torch.stack([margin(model(step), y) for step in steps])
    found = AlternatingMasks(attack=replace(PGD3, keep="best"), rounds=1)(model, x, y)
    torch.testing.assert_close(margin(model(found), y), margins.amin(0))


def test_a_round_costs_its_steps_a_freezing_and_a_judging(model, images):
    counted = Counted(model)
    AlternatingMasks(attack=PGD3, rounds=4)(counted, *images)
    assert counted.forwards == 8 * 4 * (3 + 1 + 1)
    assert counted.backwards == 8 * 4 * 3


def test_the_network_is_as_it_was(model, images):
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    AlternatingMasks(attack=PGD3, rounds=2)(model, *images)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_it_tells_what_a_network_lacks(model, images, linear):
    attack, x = AlternatingMasks(attack=PGD3, rounds=2), images[0]
    cas = attach(TinyCNN(num_classes=4), {"block2": CAS}, (3, 8, 8), 4).double()
    assert attack.lacks(model, x) is None
    assert attack.lacks(cas, x) == "no defence of the network files 'mask'"
    assert "no auxiliary tensor" in attack.lacks(linear, x)
    for key, lack in (("p_plus", None), ("p_probe", "no defence of the network files 'p_probe'")):
        on_aux = replace(PGD3, objective=OnAux(key=key, loss=CrossEntropy()))
        assert AlternatingMasks(attack=on_aux, rounds=2).lacks(model, x) == lack
    with pytest.raises(ValueError, match="files 'mask'"):
        attack(cas, *images)


def test_what_it_tells_of_itself():
    attack = AlternatingMasks(attack=replace(PGD3, random_start=True), rounds=2)
    assert (attack.threat, attack.is_random, attack.exact_on_linear) == (PGD3.threat, True, False)
    assert repr(attack) == f"AlternatingMasks(attack={attack.attack!r}, rounds=2)"
    assert hash(attack) == hash(replace(attack))


def test_rounds_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="rounds to be a whole number of at least 1, got 0"):
        AlternatingMasks(attack=PGD3, rounds=0)
    diversity = InputDiversity(rate=0.7, probability=0.5, interpolation="nearest")
    with pytest.raises(ValueError, match=r"give attack\.diversity=null"):
        AlternatingMasks(attack=replace(PGD3, diversity=diversity), rounds=2)

"""Watched: what a run knows of its iterates, and when it must ask once more."""

import torch

from fsr_lab.attack.along_route import AlongRoute
from fsr_lab.attack.input_diversity import InputDiversity
from fsr_lab.attack.pgd import PGD
from fsr_lab.attack.watched import Watched
from fsr_lab.core.route import Route
from fsr_lab.core.threat import Threat
from fsr_lab.defense.fsr import FSR
from fsr_lab.defense.sap import SAP
from fsr_lab.evaluation.counting import Counted
from fsr_lab.model.defended import attach
from fsr_lab.model.tiny_cnn import TinyCNN


def test_the_latest_pass_is_not_made_again(linear, batch):
    model, x = Counted(linear), batch[0]
    seen, other = Watched(model), (1 - x).requires_grad_()
    logits = seen(x)
    assert torch.equal(seen.logits_on(x), logits)
    assert model.forwards == 8
    found = seen.logits_on(other)
    assert torch.equal(found, linear(other))
    assert not found.requires_grad
    assert model.forwards == 16
    assert torch.equal(seen.logits_on(other), found)
    assert model.forwards == 16


def test_a_pass_with_auxiliary_tensors_counts_and_all_else_is_the_models(batch):
    model = attach(TinyCNN(num_classes=4), {}, (3, 8, 8), 4)
    counted = Counted(model)
    seen = Watched(counted)
    assert torch.equal(seen.forward_with_aux(batch[0]).logits, seen.logits_on(batch[0]))
    assert counted.forwards == 8
    assert seen.has_attack_terms is False
    assert seen.backbone is model.backbone


def test_patience_is_about_the_iterate_and_not_what_was_shown_of_it(batch):
    """With patience 0 a sample that is wrong as it is stays, though it is right wherever it is resized."""
    x, y = 0.5 + 0.5 * batch[0], torch.zeros(8, dtype=torch.int64)

    def right_above_a_black_border(x):
        return torch.stack([x[:, :, :-1].mean((1, 2, 3)), x[:, :, -1].mean((1, 2))], dim=1)

    attack = PGD(
        threat=Threat(norm="linf", eps=0.01), steps=3, relative_step=0.5, random_start=False, patience=0,
        diversity=InputDiversity(rate=0.6, probability=1.0, interpolation="nearest"),
    )  # fmt: skip
    is_right = right_above_a_black_border(x).argmax(1) == 0
    found = attack(right_above_a_black_border, x, y)
    assert 0 < is_right.sum() < 8
    assert ((found != x).flatten(1).any(1) == is_right).all()


def test_a_pass_with_auxiliary_tensors_serves_all_until_it_is_forgotten(batch):
    x = batch[0]
    model = attach(TinyCNN(num_classes=4), {"block1.conv": SAP, "block2": FSR}, (3, 8, 8), 4).eval()
    counted = Counted(model)
    seen = Watched(counted, with_aux=True)
    first = seen.forward_with_aux(x)
    assert seen.forward_with_aux(x) is first
    assert seen(x) is first.logits
    assert torch.equal(seen.logits_on(x), first.logits)
    assert counted.forwards == 8
    seen.forget()
    assert torch.equal(seen.logits_on(x), first.logits)  # still known, without a graph
    second = seen.forward_with_aux(x)
    assert not torch.equal(second.logits, first.logits)  # SAP drew anew
    assert counted.forwards == 16
    seen.forward_with_aux(1 - x)
    assert counted.forwards == 24


def test_without_auxiliary_tensors_every_call_is_a_pass(linear, batch):
    counted = Counted(linear)
    seen = Watched(counted)
    seen(batch[0])
    seen(batch[0])
    assert counted.forwards == 16


def test_a_view_is_watched_too_and_tells_what_the_network_would_say(batch):
    x, other = batch[0], 1 - batch[0]
    model = attach(TinyCNN(num_classes=4), {"block1": FSR}, (3, 8, 8), 4).eval()
    counted = Counted(model)
    seen = Watched(counted)
    exact, warm = (AlongRoute(route=Route(**options)) for options in ({"backward_tau": 1.0}, {"tau": 1.0}))
    assert seen.through(exact) is seen.through(exact)
    assert seen.through(exact) is not seen.through(warm)
    seen.through(warm)(x)
    assert torch.equal(seen.logits_on(x), model(x))  # not the warm view's
    assert counted.forwards == 16
    seen.through(exact)(other)
    assert torch.equal(seen.logits_on(other), model(other))
    assert not seen.logits_on(other).requires_grad
    assert counted.forwards == 24
    both = seen.through(warm).through(exact)
    both(x.clone())
    assert counted.forwards == 32


def test_a_forgotten_view_is_computed_anew(batch):
    x = batch[0]
    model = attach(TinyCNN(num_classes=4), {"block1": FSR}, (3, 8, 8), 4).eval()
    counted = Counted(model)
    seen = Watched(counted, with_aux=True)
    view = seen.through(AlongRoute(route=Route(backward_tau=1.0)))
    assert view.forward_with_aux(x) is view.forward_with_aux(x)
    seen.forget()
    view.forward_with_aux(x)
    assert counted.forwards == 16

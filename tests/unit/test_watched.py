"""Watched: what a run knows of its iterates, and when it must ask once more."""

import torch

from fsr_lab.attack.input_diversity import InputDiversity
from fsr_lab.attack.pgd import PGD
from fsr_lab.attack.watched import Watched
from fsr_lab.core.threat import Threat
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

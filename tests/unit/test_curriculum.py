"""The rules by which a curriculum attacks harder, on a trainer that says what it is told to."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fsr_lab.attack.pgd import PGD
from fsr_lab.callback.curriculum import Curriculum
from fsr_lab.core.threat import Threat
from fsr_lab.strategy.at import AT
from fsr_lab.strategy.cat import CAT

ATTACK = PGD(threat=Threat(norm="linf", eps=0.1), steps=10, relative_step=0.25, random_start=False)


def module(strategy=None, max_strength=3):
    strategy = strategy or CAT(base=AT(attack=ATTACK), max_strength=max_strength)
    return SimpleNamespace(strategy=strategy, val_attack=ATTACK, model=nn.Linear(1, 1))


def epoch(callback, pl_module, weight, **metrics):
    """End an epoch in which the network has come to a weight."""
    nn.init.constant_(pl_module.model.weight, weight)
    named = {name.replace("_", "/", 1): torch.tensor(value) for name, value in metrics.items()}
    callback.on_train_epoch_end(SimpleNamespace(callback_metrics=named), pl_module)


def start(callback, pl_module):
    callback.on_fit_start(SimpleNamespace(), pl_module)


def test_the_validation_rule_waits_then_takes_up_the_best_weights():
    callback, pl = Curriculum(patience=2, train_acc=0.9), module()
    start(callback, pl)
    assert pl.strategy.strength == 0
    assert pl.val_attack == ATTACK
    epoch(callback, pl, 1.0, train_acc=0.95, val_acc=0.5)
    epoch(callback, pl, 2.0, train_acc=0.95, val_acc=0.7)  # the best of this stage
    epoch(callback, pl, 3.0, train_acc=0.95, val_acc=0.7)
    assert pl.strategy.strength == 0
    epoch(callback, pl, 4.0, train_acc=0.95, val_acc=0.6)
    assert pl.strategy.strength == 1
    assert pl.model.weight.item() == 2.0
    assert pl.val_attack == replace(ATTACK, steps=1)
    # the next stage compares under attack, with a best of its own
    epoch(callback, pl, 5.0, train_acc=0.95, val_acc=0.9, val_robust_acc=0.1)
    epoch(callback, pl, 6.0, train_acc=0.95, val_acc=0.9, val_robust_acc=0.1)
    assert pl.strategy.strength == 1
    epoch(callback, pl, 7.0, train_acc=0.95, val_acc=0.9, val_robust_acc=0.1)
    assert pl.strategy.strength == 2
    assert pl.model.weight.item() == 5.0


def test_the_validation_rule_asks_for_learnt_training_images():
    callback, pl = Curriculum(patience=1, train_acc=0.9), module()
    start(callback, pl)
    for weight in range(5):
        epoch(callback, pl, float(weight), train_acc=0.9, val_acc=0.5)
    assert pl.strategy.strength == 0
    epoch(callback, pl, 9.0, train_acc=0.91, val_acc=0.5)
    assert pl.strategy.strength == 1
    assert pl.model.weight.item() == 0.0


def test_the_threshold_rule_looks_at_training_alone_and_keeps_the_weights():
    callback, pl = Curriculum(rule="threshold", train_acc=0.95), module()
    start(callback, pl)
    epoch(callback, pl, 1.0, train_acc=0.95)
    assert pl.strategy.strength == 0
    epoch(callback, pl, 2.0, train_acc=0.96)
    assert pl.strategy.strength == 1
    assert pl.model.weight.item() == 2.0


def test_strength_ends_at_the_strategys_last():
    callback, pl = Curriculum(rule="threshold", train_acc=0.5), module(max_strength=2)
    start(callback, pl)
    for _ in range(5):
        epoch(callback, pl, 1.0, train_acc=0.9)
    assert pl.strategy.strength == 2
    assert pl.val_attack.steps == 2


def test_a_resumed_curriculum_goes_on_where_it_was():
    first, pl = Curriculum(patience=3, train_acc=0.5), module()
    start(first, pl)
    for weight in range(4):
        epoch(first, pl, float(weight), train_acc=0.9, val_acc=0.5)
    assert pl.strategy.strength == 1
    epoch(first, pl, 7.0, train_acc=0.9, val_robust_acc=0.5)
    epoch(first, pl, 8.0, train_acc=0.9, val_robust_acc=0.4)
    second, again = Curriculum(patience=3, train_acc=0.5), module()
    second.load_state_dict(first.state_dict())
    start(second, again)
    assert again.strategy.strength == 1
    assert again.val_attack.steps == 1
    for callback, one in ((first, pl), (second, again)):
        for weight in (9.0, 10.0):
            epoch(callback, one, weight, train_acc=0.9, val_robust_acc=0.4)
        assert one.strategy.strength == 2
        assert one.model.weight.item() == 7.0


def test_what_cannot_work_is_refused_in_one_line():
    for build in (
        lambda: Curriculum(rule="plateau"),
        lambda: Curriculum(patience=0),
        lambda: Curriculum(train_acc=1.5),
        lambda: start(Curriculum(), module(AT(attack=ATTACK))),
        lambda: epoch(Curriculum(), module(), 1.0, train_acc=0.9),
    ):
        with pytest.raises(ValueError, match=r"expected|plateau|has none|val_size") as caught:
            build()
        assert "\n" not in str(caught.value)

"""The rules by which a curriculum attacks harder, on a trainer that says what it is told to."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fsr_lab.attack.pgd import PGD
from fsr_lab.callback.curriculum import Curriculum
from fsr_lab.core.threat import Threat
from fsr_lab.strategy.at import AT
from fsr_lab.strategy.cat import CAT
from fsr_lab.strategy.s2o import S2O

ATTACK = PGD(threat=Threat(norm="linf", eps=0.1), steps=10, relative_step=0.25, random_start=False)


class Told(nn.Module):
    """Predicts what its two pixels say, and carries a weight to be remembered."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 1))

    def forward(self, x):
        return x.flatten(1) + 0 * self.weight


def module(strategy=None, max_strength=3):
    strategy = strategy or CAT(base=AT(attack=ATTACK), max_strength=max_strength)
    return SimpleNamespace(strategy=strategy, val_attack=ATTACK, model=Told(), device=torch.device("cpu"))


def epoch(callback, pl_module, weight, *, train_acc, acc=None):
    """End an epoch in which the network has come to a weight, and to an accuracy on ten validation images."""
    nn.init.constant_(pl_module.model.weight, weight)
    if acc is not None:
        right = torch.arange(10) < round(10 * acc)
        x = torch.stack([right, ~right], dim=1).float().reshape(10, 1, 1, 2)
        for part in (slice(0, 4), slice(4, 10)):
            batch = (x[part], torch.zeros(len(x[part]), dtype=torch.int64))
            callback.on_validation_batch_end(SimpleNamespace(), pl_module, None, batch, 0, 0)
    metrics = {"train/acc": torch.tensor(train_acc)}
    callback.on_train_epoch_end(SimpleNamespace(callback_metrics=metrics), pl_module)


def start(callback, pl_module):
    callback.on_fit_start(SimpleNamespace(), pl_module)


def test_the_validation_rule_waits_then_takes_up_the_best_weights():
    callback, pl = Curriculum(patience=2, train_acc=0.9), module()
    start(callback, pl)
    assert pl.strategy.strength == 0
    epoch(callback, pl, 1.0, train_acc=0.95, acc=0.5)
    epoch(callback, pl, 2.0, train_acc=0.95, acc=0.7)  # the best of this stage
    epoch(callback, pl, 3.0, train_acc=0.95, acc=0.7)
    assert pl.strategy.strength == 0
    epoch(callback, pl, 4.0, train_acc=0.95, acc=0.6)
    assert pl.strategy.strength == 1
    assert pl.model.weight.item() == 2.0
    assert pl.val_attack is ATTACK  # best.ckpt is chosen under one attack for all stages
    # the next stage has a best of its own
    epoch(callback, pl, 5.0, train_acc=0.95, acc=0.1)
    epoch(callback, pl, 6.0, train_acc=0.95, acc=0.1)
    assert pl.strategy.strength == 1
    epoch(callback, pl, 7.0, train_acc=0.95, acc=0.1)
    assert pl.strategy.strength == 2
    assert pl.model.weight.item() == 5.0


def test_validation_attacks_as_strongly_as_training_does(monkeypatch):
    asked = []
    call = PGD.__call__

    def spy(self, model, x, y):
        asked.append((self.steps, self.relative_step))
        return call(self, model, x, y)

    monkeypatch.setattr(PGD, "__call__", spy)
    callback, pl = Curriculum(patience=1, train_acc=0.5), module()
    start(callback, pl)
    for weight in range(5):
        epoch(callback, pl, float(weight), train_acc=0.9, acc=0.5)
    assert asked == [(1, 2.0)] * 4 + [(2, 1.0)] * 2  # two batches an epoch, and none attacked at strength 0


def test_the_validation_rule_asks_for_learnt_training_images():
    callback, pl = Curriculum(patience=1, train_acc=0.9), module()
    start(callback, pl)
    for weight in range(5):
        epoch(callback, pl, float(weight), train_acc=0.9, acc=0.5)
    assert pl.strategy.strength == 0
    epoch(callback, pl, 9.0, train_acc=0.91, acc=0.5)
    assert pl.strategy.strength == 1
    assert pl.model.weight.item() == 0.0


def test_the_threshold_rule_looks_at_training_alone_and_keeps_the_weights():
    callback, pl = Curriculum(rule="threshold", train_acc=0.95), module()
    start(callback, pl)
    epoch(callback, pl, 1.0, train_acc=0.95)
    assert pl.strategy.strength == 0
    epoch(callback, pl, 2.0, train_acc=0.96, acc=0.1)
    assert pl.strategy.strength == 1
    assert pl.model.weight.item() == 2.0


def test_strength_ends_at_the_strategys_last():
    callback, pl = Curriculum(rule="threshold", train_acc=0.5), module(max_strength=2)
    start(callback, pl)
    for _ in range(5):
        epoch(callback, pl, 1.0, train_acc=0.9)
    assert pl.strategy.strength == 2


def test_another_strategy_may_stand_over_the_curriculum():
    inner = CAT(base=AT(attack=ATTACK))
    callback, pl = Curriculum(rule="threshold", train_acc=0.5), module(S2O(base=inner))
    start(callback, pl)
    epoch(callback, pl, 1.0, train_acc=0.9)
    assert inner.strength == 1


def test_a_resumed_curriculum_goes_on_where_it_was():
    first, pl = Curriculum(patience=3, train_acc=0.5), module()
    start(first, pl)
    for weight in range(4):
        epoch(first, pl, float(weight), train_acc=0.9, acc=0.5)
    assert pl.strategy.strength == 1
    epoch(first, pl, 7.0, train_acc=0.9, acc=0.5)
    epoch(first, pl, 8.0, train_acc=0.9, acc=0.4)
    second, again = Curriculum(patience=3, train_acc=0.5), module()
    second.load_state_dict(first.state_dict())
    start(second, again)
    assert again.strategy.strength == 1
    for callback, one in ((first, pl), (second, again)):
        for weight in (9.0, 10.0):
            epoch(callback, one, weight, train_acc=0.9, acc=0.4)
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
        with pytest.raises(
            ValueError, match=r"^expected patience|^no curriculum rule|has none$|set dataset.val_size"
        ) as caught:
            build()
        assert "\n" not in str(caught.value)

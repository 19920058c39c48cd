"""The best iterate: the weakest point that a run passes by, beside the whole run judged point by point."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fsr_lab.attack.best_iterate import BestIterate
from fsr_lab.attack.input_diversity import InputDiversity
from fsr_lab.attack.pgd import PGD
from fsr_lab.attack.translation import Translation
from fsr_lab.core.objective import DLR, OnLogits
from fsr_lab.core.threat import Threat
from fsr_lab.evaluation.counting import Counted

LINF = Threat(norm="linf", eps=0.1)
DIVERSITY = InputDiversity(rate=0.7, probability=0.5, interpolation="nearest")
WAYS = {
    "clean start": {},
    "random start": {"random_start": True},
    "gaussian start": {"random_start": True, "start_std": 0.5},
    "l2": {"threat": Threat(norm="l2", eps=1.0)},
    "dlr": {"objective": OnLogits(DLR())},
    "momentum and smoothing": {"momentum": 1.0, "smoothing": Translation(size=3, kernel="gaussian")},
    "diversity": {"diversity": DIVERSITY},
}


def pgd(**options):
    given = {"threat": LINF, "steps": 8, "relative_step": 0.5, "random_start": False, "keep": "best"}
    return PGD(**given | options)


def gaps(logits, y):
    """Return z_y minus the largest other logit, sample by sample."""
    rows = logits.detach().numpy()
    return np.array([row[label] - np.delete(row, label).max() for row, label in zip(rows, y, strict=True)])


@pytest.mark.parametrize("way", WAYS)
def test_it_is_the_weakest_iterate_of_the_run(way, bumpy, batch):
    x, y = batch[0].double(), batch[1]
    attack = pgd(**WAYS[way])
    torch.manual_seed(3)
    found = attack(bumpy, x, y)
    torch.manual_seed(3)
    run = list(replace(attack, keep="last").iterates(bumpy, x, y, at=range(1, 9)).values())
    margins = np.stack([gaps(bumpy(x_adv), y) for x_adv in run])
    weakest = margins.argmin(0)
    assert (gaps(bumpy(found), y) == margins.min(0)).all()
    assert torch.equal(found, torch.stack([run[step][row] for row, step in enumerate(weakest)]))
    assert (weakest < 7).any()  # else the last iterate would do
    assert (margins.min(0) <= margins[-1]).all()


def test_it_fools_where_the_last_iterate_is_right_again(bumpy):
    x, y, fooled = torch.rand(16, 3, 8, 8, dtype=torch.float64), torch.zeros(16, dtype=torch.int64), []
    for keep in ("last", "best"):
        torch.manual_seed(1)
        x_adv = pgd(threat=Threat(norm="l2", eps=0.5), random_start=True, keep=keep)(bumpy, x, y)
        fooled.append(bumpy(x_adv).argmax(1) != 0)
    last, best = fooled
    assert (best >= last).all()
    assert best.sum() > last.sum()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_of_an_ascent_without_turns_it_is_the_last(norm, batch):
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 2)).double()
    x, y = batch[0].double(), batch[1] % 2
    attack = pgd(threat=Threat(norm=norm, eps=0.1), relative_step=0.1)
    assert torch.equal(attack(net, x, y), replace(attack, keep="last")(net, x, y))


def test_of_equal_ones_it_is_the_later():
    first, later = torch.zeros(2, 1, 1, 1), torch.ones(2, 1, 1, 1)
    best = BestIterate(torch.full((2, 1, 1, 1), 0.5), torch.tensor([0, 0]))
    assert torch.equal(best.after(first, torch.tensor([[1.0, 0.0], [1.0, 0.0]])), first)
    assert best.after(later, torch.tensor([[1.0, 0.0], [1.1, 0.0]])).flatten().tolist() == [1, 0]


def test_what_has_no_margin_is_no_best_iterate():
    x = torch.full((1, 1, 1, 1), 0.5)
    best = BestIterate(x, torch.tensor([0]))
    assert torch.equal(best.after(torch.ones_like(x), torch.tensor([[torch.nan, 0.0]])), x)


def test_a_start_outside_the_set_is_none_of_them(batch):
    # so far outside of [0, 1] that a linear network is surer of other classes there than anywhere within
    found = pgd(random_start=True, start_std=50.0, steps=1)(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), *batch)
    assert 0 <= found.min() <= found.max() <= 1
    assert (found - batch[0]).abs().max() <= 0.1 + 1e-6


@pytest.mark.parametrize(
    ("options", "forwards"),
    [({}, 9), ({"diversity": replace(DIVERSITY, probability=1.0)}, 16), ({"keep": "last"}, 8)],
)
def test_it_asks_for_no_pass_that_the_run_makes_anyway(options, forwards, bumpy, batch):
    counted = Counted(bumpy)
    pgd(**options)(counted, batch[0].double(), batch[1])
    assert (counted.forwards, counted.backwards) == (8 * forwards, 8 * 8)


def test_an_early_result_is_that_of_the_shorter_run(bumpy, batch):
    x, y = batch[0].double(), batch[1]
    for steps, x_adv in pgd().iterates(bumpy, x, y, at=(1, 3, 8)).items():
        assert torch.equal(x_adv, pgd(steps=steps)(bumpy, x, y))


def test_another_choice_is_refused():
    with pytest.raises(ValueError, match="no iterate to keep named 'bets'; close names: \\['best'"):
        pgd(keep="bets")

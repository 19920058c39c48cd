"""NAttack's arithmetic by numpy, its budget by counting, its strength on small networks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fsr_lab.attack.nattack import NAttack
from fsr_lab.core.threat import Threat
from fsr_lab.evaluation.counting import Counted

LINF = Threat(norm="linf", eps=0.05)


def attack_of(**options):
    return NAttack(**({"threat": LINF, "queries": 2000, "population": 50} | options))


@pytest.fixture
def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 16), nn.Tanh(), nn.Linear(16, 4)).eval()


@pytest.fixture
def data(net):
    x = torch.rand(24, 3, 8, 8)
    y = net(x).argmax(1)
    y[::6] = (y[::6] + 1) % 4
    return x, y


def test_a_step_is_the_one_of_algorithm_1():
    rng = np.random.default_rng(0)
    draws, margins = rng.standard_normal((5, 1, 2, 2)), rng.standard_normal((2, 5)) + 0.5
    expected = np.zeros((2, 1, 2, 2))
    for sample in range(2):
        rewards = [-0.5 * min(max(value, 0), 1000) for value in margins[sample]]
        mean = sum(rewards) / 5
        spread = (sum((reward - mean) ** 2 for reward in rewards) / 5) ** 0.5
        for reward, draw in zip(rewards, draws, strict=True):
            expected[sample] += 0.02 / (5 * 0.1) * (reward - mean) / (spread + 1e-7) * draw
    found = attack_of(population=5, alpha=0.02, sigma=0.1).step(torch.tensor(draws), torch.tensor(margins))
    assert np.allclose(found.numpy(), expected)


def test_a_population_without_spread_moves_nothing():
    # many sizes and a whole population of 300: the rounding of their mean once moved the image by an ordinary step
    alike = torch.linspace(0.01, 9.99, 200)[:, None].expand(200, 300)
    for margins in (alike, -torch.rand(200, 300)):
        assert torch.equal(attack_of().step(torch.randn(300, 1, 4, 4), margins), torch.zeros(200, 1, 4, 4))


@pytest.mark.parametrize("any_candidate", [True, False])
def test_who_else_is_attacked_changes_nothing(net, data, monkeypatch, any_candidate):
    # 100 rows are groups of two: who leaves changes the groups too
    monkeypatch.setattr("fsr_lab.attack.nattack.ROWS", 100)
    net, x, y = net.double(), data[0].double(), data[1]
    attack = attack_of(queries=620, any_candidate=any_candidate)
    torch.manual_seed(4)
    together = attack(net, x, y)
    for rows in ([3], [20, 7, 8], list(range(23, 0, -2))):
        torch.manual_seed(4)
        assert torch.allclose(attack(net, x[rows], y[rows]), together[rows], rtol=0, atol=1e-12)


def stubborn(net):
    return Counted(lambda x: net(x) + 100 * nn.functional.one_hot(torch.zeros(len(x)).long(), 4))


@pytest.mark.parametrize(
    ("queries", "population", "iterations", "looks"),
    # METHOD 5.6: 40,000 queries are 133 iterations of 300, and the mean is looked at in every tenth
    [(40_000, 300, 133, 14), (610, 50, 12, 2), (51, 50, 1, 1), (100, 50, 1, 1), (101, 50, 2, 1)],
)
def test_the_budget_is_kept_exactly(net, queries, population, iterations, looks):
    model, x = stubborn(lambda images: torch.zeros(len(images), 4)), torch.rand(1, 1, 2, 2)
    attack_of(queries=queries, population=population)(model, x, torch.zeros(1, dtype=torch.long))
    assert model.forwards == 1 + iterations * population + looks
    assert model.backwards == 0


def test_it_fools_by_logits_alone_and_stops_asking(net, data):
    x, y = data
    right = net(x).argmax(1) == y
    counted = Counted(net)
    x_adv = attack_of()(counted, x, y)
    fooled = net(x_adv).argmax(1) != y
    assert fooled[~right].all()
    assert torch.equal(x_adv[~right], x[~right])
    assert fooled[right].float().mean() > 0.6
    noise = LINF.random_start(x)
    assert (fooled & right).sum() > ((net(noise).argmax(1) != y) & right).sum()
    assert counted.forwards < len(x) * 2000


def test_the_mean_alone_is_a_stricter_success(net, data):
    x, y = data
    torch.manual_seed(0)
    lenient = (net(attack_of(queries=600)(net, x, y)).argmax(1) != y).sum()
    torch.manual_seed(0)
    strict = (net(attack_of(queries=600, any_candidate=False)(net, x, y)).argmax(1) != y).sum()
    assert strict <= lenient


def test_it_stays_in_an_l2_ball_too(net, data):
    x, y = data
    attack = attack_of(threat=Threat(norm="l2", eps=0.5))
    x_adv = attack(net, x, y)
    assert attack.threat.measure(x_adv, x).max() <= 0.5 + 1e-6
    assert (net(x_adv).argmax(1) != y).sum() > (net(x).argmax(1) != y).sum()


class Noisy(nn.Module):
    """Draws noise where it is told to; what it does without is what counts."""

    training_noise = True

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        logits = self.net(x)
        return logits + 3 * torch.randn_like(logits) if self.training else logits


def test_success_under_noise_is_judged_without_it(net, data):
    x, y = data
    noisy = Noisy(net).eval()
    asked = attack_of(noise=True, queries=400)
    x_adv = asked(noisy, x, y)
    # noise of three fools by itself all the time; without a judge every sample would leave after the first draw
    fooled = noisy(x_adv).argmax(1) != y
    counted = Counted(noisy)
    asked(counted, x, y)
    survivors = int((~fooled).sum())
    assert survivors > 0
    assert counted.forwards > survivors * 300
    assert not noisy.training


def test_groups_of_samples_bound_the_memory(net, data, monkeypatch):
    monkeypatch.setattr("fsr_lab.attack.nattack.ROWS", 100)
    x, y = data
    largest = []

    def watched(images):
        largest.append(len(images))
        return net(images)

    attack_of(queries=200)(watched, x, y)
    assert max(largest[1:]) <= 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population": 1}, "population"),
        ({"queries": 50, "population": 50}, "queries"),
        ({"sigma": 0}, "sigma"),
        ({"alpha": 0}, "alpha"),
    ],
)
def test_sizes_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=f"expected {message}"):
        attack_of(**options)


def test_one_seed_gives_one_result(net, data):
    x, y = data
    torch.manual_seed(5)
    first = attack_of(queries=300)(net, x, y)
    torch.manual_seed(5)
    again = replace(attack_of(), queries=300)(net, x, y)
    assert torch.equal(first, again)

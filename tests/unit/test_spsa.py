"""SPSA: an unbiased estimate, an exact budget, samples fooled by logits alone."""

import pytest
import torch
from torch import nn

from fsr_lab.attack.spsa import SPSA
from fsr_lab.core.losses import margin
from fsr_lab.core.threat import Threat
from fsr_lab.evaluation.counting import Counted

LINF = Threat(norm="linf", eps=0.05)


def attack_of(**options):
    return SPSA(**({"threat": LINF, "queries": 650, "directions": 16} | options))


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


def test_the_estimate_has_no_bias_on_a_linear_function():
    linear = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).double()
    x, y = torch.rand(3, 3, 2, 2, dtype=torch.float64), torch.tensor([0, 1, 0])
    slope = linear[1].weight[0] - linear[1].weight[1]
    truth = torch.stack([slope, -slope, slope]).reshape(3, 3, 2, 2).detach()
    with torch.no_grad():
        drawn = torch.stack([attack_of(directions=4).estimate(linear, x, y) for _ in range(4000)])
    error = drawn.std(0) / 4000**0.5
    assert ((drawn.mean(0) - truth).abs() < 5 * error).all()


def test_the_budget_is_kept_exactly():
    def never(x):
        return torch.tensor([1.0, 0.0]).repeat(len(x), 1)

    for queries, directions, spent in ((650, 16, 19 * 33), (33, 16, 33), (65, 16, 33)):
        model = Counted(never)
        attack_of(queries=queries, directions=directions)(model, torch.rand(3, 1, 4, 4), torch.zeros(3).long())
        assert model.forwards == 3 * (1 + spent)
        assert model.backwards == 0


def test_who_else_is_attacked_changes_nothing(net, data, monkeypatch):
    # 100 rows: how many directions go side by side depends on how many samples are left
    monkeypatch.setattr("fsr_lab.attack.spsa.ROWS", 100)
    net, x, y = net.double(), data[0].double(), data[1]
    torch.manual_seed(4)
    together = attack_of()(net, x, y)
    for rows in ([3], [20, 7, 8], list(range(23, 0, -2))):
        torch.manual_seed(4)
        assert torch.allclose(attack_of()(net, x[rows], y[rows]), together[rows], rtol=0, atol=1e-9)


def test_chunks_of_directions_change_no_count(monkeypatch, net, data):
    monkeypatch.setattr("fsr_lab.attack.spsa.ROWS", 100)
    x, y = data
    largest = []

    def watched(images):
        largest.append(len(images))
        return net(images)

    x_adv = attack_of()(watched, x, y)
    assert max(largest) <= 100
    assert (net(x_adv).argmax(1) != y).sum() > (net(x).argmax(1) != y).sum()


@pytest.mark.parametrize("threat", [LINF, Threat(norm="l2", eps=0.8)])
def test_it_fools_by_logits_alone(net, data, threat):
    x, y = data
    right = net(x).argmax(1) == y
    x_adv = attack_of(threat=threat, queries=1650)(net, x, y)
    fooled = net(x_adv).argmax(1) != y
    assert fooled[right].float().mean() > 0.6
    assert torch.equal(x_adv[~right], x[~right])
    assert threat.measure(x_adv, x).max() <= threat.eps + 1e-6


def test_a_search_begins_at_its_start_and_leaves_what_is_wrong_there(net, data):
    x, y = data
    start = attack_of(queries=1650)(net, x, y)
    fooled = net(start).argmax(1) != y
    assert 0 < fooled.sum() < len(x)
    asked = []

    def watched(images):
        asked.append(images.clone())
        return net(images)

    found = attack_of().run_from(start, watched, x, y)
    assert torch.equal(asked[0], start)
    assert torch.equal(found[fooled], start[fooled])
    assert len(asked[1]) == 2 * 16 * (~fooled).sum()
    assert ((asked[1].reshape(2, -1, 16, *x.shape[1:]).mean((0, 2)) - start[~fooled]).abs() < 1e-5).all()
    assert (margin(net(found), y) <= margin(net(start), y)).all()


def test_a_start_outside_the_set_is_put_into_it(net, data):
    x, y = data
    found = attack_of().run_from(x + 0.5, net, x, y)
    assert LINF.measure(found, x).max() <= LINF.eps + 1e-6
    assert found.max() <= 1


def test_from_the_clean_image_it_is_the_attack(net, data):
    x, y = data
    found = []
    for run in (attack_of(), lambda *args: attack_of().run_from(x, *args)):
        torch.manual_seed(0)
        found.append(run(net, x, y))
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"directions": 0}, "directions"), ({"queries": 32, "directions": 16}, "queries"), ({"delta": 0}, "delta"),
     ({"learning_rate": 0}, "learning_rate")],
)  # fmt: skip
def test_sizes_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=f"expected {message}"):
        attack_of(**options)

"""Multi-targeted: which classes are aimed at, who goes on, and the worst point of a linear network."""

import numpy as np
import pytest
import torch
from torch import nn

from fsr_lab.attack.multi_targeted import MultiTargeted
from fsr_lab.attack.pgd import PGD
from fsr_lab.core.objective import TargetedDLR, TargetedMargin
from fsr_lab.core.threat import Threat


def multi(loss=None, targets=9, **options):
    given = {"threat": Threat(norm="linf", eps=0.1), "steps": 10, "relative_step": 0.2, "random_start": False}
    return MultiTargeted(attack=PGD(**given | options), loss=loss or TargetedMargin(), targets=targets)


class Noted(TargetedMargin):
    """Keeps the targets of the first step of every run: (labels, targets)."""

    def __init__(self, steps):
        object.__setattr__(self, "steps", steps)
        object.__setattr__(self, "calls", [])

    def __call__(self, logits, y, target):
        self.calls.append((y.tolist(), target.tolist()))
        return super().__call__(logits, y, target)

    def runs(self):
        return self.calls[:: self.steps]


def robust(classes, norm="linf"):
    """A linear network whose class 0 nobody leaves; the less likely a class is, the more eps changes it."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, classes)).double()
    with torch.no_grad():
        net[1].weight.mul_(torch.arange(classes)[:, None])
        net[1].bias.copy_(-100.0 * torch.arange(classes))
    return net


@pytest.mark.parametrize(("classes", "targets", "count"), [(4, 9, 3), (12, 9, 9), (4, 2, 2), (2, 9, 1)])
def test_it_aims_at_each_of_the_likeliest_wrong_classes_once(classes, targets, count, batch):
    net, x, y = robust(classes), batch[0].double(), torch.zeros(8, dtype=torch.int64)
    loss = Noted(10)
    multi(loss, targets)(net, x, y)
    ranked = np.argsort(-net(x).detach().numpy(), axis=1)
    assert [target for _, target in loss.runs()] == [ranked[:, 1 + run].tolist() for run in range(count)]


def test_whoever_is_fooled_is_aimed_at_no_more(linear, batch):
    loss = Noted(10)
    x, y = batch
    y = linear(x).argmax(1)
    found = multi(loss, threat=Threat(norm="linf", eps=0.02))(linear, x, y)
    sizes = [len(labels) for labels, _ in loss.runs()]
    assert 8 == sizes[0] > sizes[1] >= sizes[2] > 0
    assert (linear(found).argmax(1) != y).sum() >= 8 - sizes[-1]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("random_start", [False, True])
def test_it_finds_the_weakest_side_of_a_linear_network(norm, random_start, batch):
    net, y = robust(5), torch.zeros(8, dtype=torch.int64)
    x = 0.3 + 0.4 * batch[0].double()
    logits, weight = net(x).detach().numpy(), net[1].weight.detach().numpy()
    # the dual norm is by how much eps moves z_0 - z_t
    length = [np.abs(row - weight[0]).sum() if norm == "linf" else np.linalg.norm(row - weight[0]) for row in weight]
    sides = np.stack([logits[:, 0] - logits[:, target] - 0.1 * length[target] for target in range(1, 5)])
    options = {"threat": Threat(norm=norm, eps=0.1), "random_start": random_start, "steps": 60, "relative_step": 0.1}
    found = net(multi(**options)(net, x, y)).detach().numpy()
    np.testing.assert_allclose(found[:, 0] - found[:, 1:].max(1), sides.min(0), rtol=1e-6)


def test_a_sample_knows_nothing_of_the_others(classifier, batch):
    net, (x, y) = classifier.double(), (batch[0].double(), batch[1])
    whole = multi()(net, x, y)
    alone = torch.cat([multi()(net, x[[index]], y[[index]]) for index in range(8)])
    torch.testing.assert_close(whole, alone, atol=1e-12, rtol=0)


def test_too_few_classes_for_the_loss_are_refused_with_another(batch):
    with pytest.raises(ValueError, match="at least 4 classes for targeted dlr, got 3; take the loss TargetedMargin"):
        multi(TargetedDLR())(robust(3).float(), batch[0], batch[1] * 0)
    with pytest.raises(ValueError, match="targets to be a whole number of at least 1, got 0"):
        multi(targets=0)

"""What all tests share: a seed before each, a batch, and networks so small that no test waits for them."""

import random
import signal

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import nn

settings.register_profile("house", derandomize=True, deadline=None, max_examples=25, database=None)
settings.load_profile("house")


@pytest.fixture(autouse=True)
def _seeded():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_signal_handler_is_left_behind():
    """A later run of the process would take one for that of a program round it, which decides what becomes of it."""
    heard = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.getsignal(number) for number in heard}
    yield
    after = {number: signal.getsignal(number) for number in heard}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert after == before


@pytest.fixture
def batch():
    """Eight images of the toy set's size, and labels of its four classes."""
    return torch.rand(8, 3, 8, 8), torch.arange(8) % 4


@pytest.fixture
def linear():
    """A linear model of four classes: its worst perturbation is known."""
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 4))


@pytest.fixture
def classifier():
    """Two convolutions with BatchNorm, whose statistics are not their initial ones, in training mode."""
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    for norm in (net[1], net[4]):
        for value in (norm.weight, norm.bias, norm.running_mean):
            nn.init.uniform_(value, -0.5, 1.0)
        nn.init.uniform_(norm.running_var, 0.2, 2.0)
    return net


class Waves(nn.Module):
    """The sine of each value."""

    def forward(self, x):
        return torch.sin(x)


@pytest.fixture
def bumpy():
    """A network in float64 that holds to class 0 and whose loss has many tops, so that starts and steps matter."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 24), Waves(), nn.Linear(24, 4)).double()
    with torch.no_grad():
        net[1].weight.mul_(25)
        net[3].bias[0] += 2.5
    return net

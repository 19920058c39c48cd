"""What tests of attacks share: a network that is worth attacking, and a way to see what it is asked."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from fsr_lab.attack.pgd import PGD
from fsr_lab.core.threat import Threat


class Recorder:
    """A model that keeps what it is asked, and counts how often with a gradient."""

    def __init__(self, model):
        self.model, self.asked, self.gradients = model, [], 0

    def __call__(self, x):
        self.asked.append(x.detach().clone())  # an attack may write into its iterates afterwards
        self.gradients += x.requires_grad
        return self.model(x)

    @property
    def samples(self):
        return sum(len(x) for x in self.asked)


@pytest.fixture(scope="session")
def recorder():
    """Return the class that wraps a model: `.asked` are the images, `.gradients` and `.samples` are counts."""
    return Recorder


@pytest.fixture(scope="session")
def trained():
    """A network of six classes after a little adversarial training, and 48 new images, in float64.

    At linf 8/255 and l2 0.3 some images are misclassified, some can be fooled, and some cannot.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        templates = torch.randn(6, 3, 8, 8)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(256, 6),
        )  # fmt: skip

        def drawn(count):
            y = torch.randint(6, (count,))
            return (0.5 + 0.07 * templates[y] + 0.15 * torch.randn(count, 3, 8, 8)).clamp(0, 1), y

        attack = PGD(threat=Threat(norm="linf", eps=8 / 255), steps=3, relative_step=0.5, random_start=True)
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        for _ in range(90):
            x, y = drawn(64)
            loss = functional.cross_entropy(net(attack(net, x, y)), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        x, y = drawn(48)
    return net.double(), x.double(), y

"""MI, DI and TI beside a run that numpy and scipy compute alone, on a softmax regression, in both norms."""

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve
from scipy.special import softmax
from scipy.stats import norm as normal
from torch import nn

from fsr_lab.attack.input_diversity import InputDiversity
from fsr_lab.attack.pgd import PGD
from fsr_lab.attack.translation import Translation
from fsr_lab.core.threat import Threat

STEPS, SIZE = 6, 0.3
EPS = {"linf": 8 / 255, "l2": 0.5}


def shown(x, side, top, left):
    """Resize 8 x 8 pixels to the nearest and pad them with nought, in (N, C, 8, 8)."""
    taken = np.arange(side) * 8 // side
    image = np.zeros_like(x)
    image[..., top : top + side, left : left + side] = x[..., taken[:, None], taken]
    return image


def carried_back(gradient, side, top, left):
    """The transposed of `shown`: each pixel gathers the gradients of its copies."""
    taken = np.arange(side) * 8 // side
    image = np.zeros_like(gradient)
    rows, columns = np.meshgrid(taken, taken, indexing="ij")
    np.add.at(image, (..., rows, columns), gradient[..., top : top + side, left : left + side])
    return image


def drawn():
    """Draw a side below 8, offsets and whether to transform, in the order of the attack."""
    side = int(torch.randint(5, 8, (1,)))
    top, left = (int(torch.randint(0, 8 - side, (1,))) for _ in range(2))
    return (side, top, left) if torch.rand(1).item() < 0.6 else None


def reference(weight, bias, x, y, *, norm, momentum, kernel, is_diverse):
    eps = EPS[norm]
    x_adv, followed = x.copy(), np.zeros_like(x)
    for _ in range(STEPS):
        placed = drawn() if is_diverse else None
        image = x_adv if placed is None else shown(x_adv, *placed)
        error = softmax(image.reshape(len(x), -1) @ weight.T + bias, axis=1) - np.eye(4)[y]
        gradient = (error @ weight).reshape(x.shape)
        if placed is not None:
            gradient = carried_back(gradient, *placed)
        if kernel:
            row = normal.pdf(np.linspace(-3, 3, kernel))
            window = np.outer(row, row) / np.outer(row, row).sum()
            gradient = np.stack([[convolve(plane, window, mode="constant") for plane in image] for image in gradient])
        followed = momentum * followed + gradient / np.abs(gradient).mean((1, 2, 3), keepdims=True)
        if norm == "linf":
            x_adv = np.clip(x_adv + SIZE * eps * np.sign(followed), x - eps, x + eps)
        else:
            length = np.sqrt((followed**2).sum((1, 2, 3), keepdims=True))
            delta = x_adv + SIZE * eps * followed / length - x
            x_adv = x + delta * np.minimum(1, eps / np.sqrt((delta**2).sum((1, 2, 3), keepdims=True)))
        x_adv = np.clip(x_adv, 0, 1)
    return x_adv


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    ("momentum", "kernel", "is_diverse"),
    [(0.0, 0, False), (1.0, 0, False), (0.0, 5, False), (0.0, 0, True), (0.6, 7, True)],
    ids=["plain", "mi", "ti", "di", "all"],
)
def test_a_run_agrees(norm, momentum, kernel, is_diverse, batch):
    net, x, y = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).double(), batch[0].double(), batch[1]
    attack = PGD(
        threat=Threat(norm=norm, eps=EPS[norm]), steps=STEPS, relative_step=SIZE, random_start=False, momentum=momentum,
        smoothing=Translation(size=kernel, kernel="gaussian") if kernel else None,
        diversity=InputDiversity(rate=0.7, probability=0.6, interpolation="nearest") if is_diverse else None,
    )  # fmt: skip
    weight, bias = (parameter.detach().numpy() for parameter in (net[1].weight, net[1].bias))
    torch.manual_seed(11)
    wanted = reference(
        weight, bias, x.numpy(), y.numpy(), norm=norm, momentum=momentum, kernel=kernel, is_diverse=is_diverse
    )
    torch.manual_seed(11)
    np.testing.assert_allclose(attack(net, x, y).numpy(), wanted, atol=1e-12)

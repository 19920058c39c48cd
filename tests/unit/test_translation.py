"""TI: the kernels beside scipy's and numpy's, and the smoothing beside scipy's convolution."""

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve
from scipy.stats import norm

from fsr_lab.attack.pgd import PGD
from fsr_lab.attack.translation import Translation
from fsr_lab.core.crafting import Policy
from fsr_lab.core.threat import Threat


def reference(kernel, size, nsig=3.0):
    """Return the paper's kernels, (size, size)."""
    if kernel == "gaussian":
        row = norm.pdf(np.linspace(-nsig, nsig, size))
    elif kernel == "linear":
        row = np.array([1 - abs(i) / (size // 2 + 1) for i in range(-(size // 2), size // 2 + 1)])
    else:
        row = np.ones(size)
    return np.outer(row, row) / np.outer(row, row).sum()


@pytest.mark.parametrize("kernel", ["gaussian", "linear", "uniform"])
@pytest.mark.parametrize("size", [1, 5, 7, 15])
def test_it_is_the_convolution_with_the_papers_kernel(kernel, size):
    gradient = torch.randn(2, 3, 12, 17, dtype=torch.float64)
    found = Translation(size=size, kernel=kernel)(gradient)
    weights = reference(kernel, size)
    wanted = np.stack([[convolve(plane, weights, mode="constant") for plane in image] for image in gradient.numpy()])
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-14)


def test_a_point_becomes_the_kernel():
    point = torch.zeros(1, 1, 31, 31, dtype=torch.float64)
    point[0, 0, 15, 15] = 1
    found = Translation(size=15, kernel="gaussian", nsig=2.0)(point)[0, 0]
    np.testing.assert_allclose(found[8:23, 8:23].numpy(), reference("gaussian", 15, 2.0), atol=1e-16)
    assert found.sum().item() == pytest.approx(1)


def test_one_pixel_changes_nothing(classifier, batch):
    options = {"threat": Threat(norm="linf", eps=8 / 255), "steps": 3, "relative_step": 0.25, "random_start": False}
    plain = PGD(**options)(classifier, *batch)
    assert torch.equal(PGD(**options, smoothing=Translation(size=1, kernel="linear"))(classifier, *batch), plain)


def test_one_step_follows_the_smoothed_gradient(classifier, batch):
    model, x, y = classifier.eval().double(), batch[0].double(), batch[1]
    image = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(model(image), y), image)
    weights = reference("gaussian", 5)
    smooth = np.stack([[convolve(plane, weights, mode="constant") for plane in planes] for planes in gradient.numpy()])
    attack = PGD(
        threat=Threat(norm="linf", eps=8 / 255), steps=1, relative_step=1.0, random_start=False,
        smoothing=Translation(size=5, kernel="gaussian"),
    )  # fmt: skip
    assert not attack.exact_on_linear
    assert not attack.is_random
    wanted = (x + 8 / 255 * torch.from_numpy(np.sign(smooth))).clamp(0, 1)
    torch.testing.assert_close(attack(model, x, y), wanted, atol=1e-12, rtol=0)


def test_halves_stay_out_of_the_smoothing(classifier, batch):
    seen = []

    class Watched(Translation):
        def __call__(self, gradient):
            seen.append((gradient, super().__call__(gradient)))
            return seen[-1][1]

    smoothing = Watched(size=7, kernel="gaussian")
    attack = PGD(
        threat=Threat(norm="linf", eps=8 / 255), steps=1, relative_step=1.0, random_start=False,
        smoothing=smoothing, policy=Policy(dtype="bfloat16"),
    )  # fmt: skip
    attack(classifier, *batch)
    ((gradient, smooth),) = seen
    assert smooth.dtype == torch.float32
    exact = Translation(size=7, kernel="gaussian")(gradient.double())
    torch.testing.assert_close(smooth.double(), exact, atol=1e-6 * exact.abs().max().item(), rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 4}, "odd size, to have a middle, got 4"),
        ({"size": 0}, "at least 1"),
        ({"kernel": "gauss"}, "'gaussian'"),
        ({"nsig": 0}, "nsig above 0"),
    ],
)
def test_values_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Translation(**({"size": 5, "kernel": "gaussian"} | options))

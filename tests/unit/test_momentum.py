"""MI: what a step follows, by hand; a momentum of nought is PGD to the last bit."""

import pytest
import torch
from torch.nn import functional

from fsr_lab.attack.momentum import gathered
from fsr_lab.attack.pgd import PGD
from fsr_lab.core.threat import Threat

LINF = Threat(norm="linf", eps=8 / 255)


def mifgsm(**options):
    return PGD(**({"threat": LINF, "steps": 6, "relative_step": 0.25, "random_start": False} | options))


def test_gradients_are_scaled_per_sample_and_gathered():
    first = torch.tensor([[[[1.0, -3.0]]], [[[0.0, 4.0]]]])
    second = torch.tensor([[[[1.0, 1.0]]], [[[-1.0, 0.0]]]])
    # means of the absolute values: 2 and 2, then 1 and 1/2
    once = gathered(first, None, 0.5)
    assert once.tolist() == [[[[0.5, -1.5]]], [[[0.0, 2.0]]]]
    assert gathered(second, once, 0.5).tolist() == [[[[1.25, 0.25]]], [[[-2.0, 1.0]]]]


def test_a_gradient_of_nought_stays_nought():
    assert gathered(torch.zeros(2, 3, 4, 4), None, 1.0).tolist() == torch.zeros(2, 3, 4, 4).tolist()


def test_it_follows_the_papers_algorithm(classifier, batch):
    model = classifier.eval().double()
    x, y = batch[0].double(), batch[1]
    x_adv, followed = x.clone(), torch.zeros_like(x)
    for _ in range(6):
        x_adv.requires_grad_(True)
        functional.cross_entropy(model(x_adv), y).backward()
        followed = 0.7 * followed + x_adv.grad / x_adv.grad.abs().sum((1, 2, 3), keepdim=True)  # Eq. 6
        with torch.no_grad():
            x_adv = torch.maximum(torch.minimum(x_adv + 2 / 255 * followed.sign(), x + 8 / 255), x - 8 / 255).clamp(
                0, 1
            )
    found = mifgsm(momentum=0.7)(model, x, y)
    torch.testing.assert_close(found, x_adv, atol=1e-12, rtol=0)
    assert not torch.allclose(found, mifgsm()(model, x, y))


def test_without_momentum_it_is_pgd(classifier, batch):
    assert mifgsm(momentum=0.0) == mifgsm()
    assert torch.equal(mifgsm(momentum=1e-30)(classifier, *batch), mifgsm()(classifier, *batch))


def test_a_negative_momentum_is_refused():
    with pytest.raises(ValueError, match="at least 0"):
        mifgsm(momentum=-1)

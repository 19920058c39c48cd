import pytest
import torch

from fsr_lab.core.threat import Threat
from fsr_lab.evaluation.sanity import check_adversarial, check_images, check_labels, check_logits

LINF = Threat(norm="linf", eps=0.1)


def test_good_values_pass():
    x = torch.rand(4, 3, 5, 5)
    check_images(x)
    check_images(torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1))
    check_labels(torch.tensor([0, 9]), 10)
    logits = torch.randn(4, 10)
    assert check_logits(logits, 4) is logits


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.rand(3, 5, 5), r"expected float images \(N, C, H, W\), got \(3, 5, 5\) of torch.float32"),
        (torch.zeros(1, 1, 2, 2, dtype=torch.uint8), "of torch.uint8"),
        (torch.full((1, 1, 1, 1), torch.nan), "expected finite images"),
        (torch.full((1, 1, 1, 1), -torch.inf), "expected finite images"),
        (torch.full((1, 1, 1, 1), 1.001), r"in \[0, 1\], got values in \[1.001, 1.001\]; normalise inside the model"),
        (torch.full((1, 1, 1, 1), -1e-3), r"in \[0, 1\], got values in \[-0.001, -0.001\]"),
    ],
)
def test_images_out_of_range_are_refused(x, message):
    with pytest.raises(ValueError, match=message):
        check_images(x)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.tensor([0, 10]), r"expected labels in \[0, 10\), got 0 to 10; the network has too few outputs"),
        (torch.tensor([-1, 3]), "got -1 to 3"),
        (torch.tensor([0.0, 1.0]), r"expected int64 labels \(N,\), got \(2,\) of torch.float32"),
        (torch.tensor([[0, 1]]), r"expected int64 labels \(N,\), got \(1, 2\)"),
    ],
)
def test_labels_out_of_range_are_refused(y, message):
    with pytest.raises(ValueError, match=message):
        check_labels(y, 10)


@pytest.mark.parametrize(
    ("logits", "error", "message"),
    [
        ((torch.zeros(2, 3),), TypeError, "expected the model to return logits, got tuple; wrap it"),
        (None, TypeError, "got NoneType"),
        (torch.zeros(2), ValueError, r"expected logits of shape \(2, K\), got \(2,\)"),
        (torch.zeros(3, 4), ValueError, r"expected logits of shape \(2, K\), got \(3, 4\)"),
        (torch.tensor([[0.0, torch.nan], [0, 0]]), ValueError, "gives NaN or infinite logits"),
        (torch.tensor([[0.0, -torch.inf], [0, 0]]), ValueError, "gives NaN or infinite logits"),
    ],
)
def test_what_is_no_logits_is_refused(logits, error, message):
    with pytest.raises(error, match=message):
        check_logits(logits, 2)


def test_the_perturbation_is_measured_per_sample():
    x = torch.full((2, 1, 1, 2), 0.5)
    x_adv = x + torch.tensor([[0.1, -0.05], [0.0, 0.02]]).reshape(2, 1, 1, 2)
    assert check_adversarial("fgsm", x_adv, x, LINF).tolist() == pytest.approx([0.1, 0.02], abs=1e-7)
    wide = Threat(norm="l2", eps=0.2)
    assert check_adversarial("fgsm", x_adv, x, wide).tolist() == pytest.approx([0.0125**0.5, 0.02], abs=1e-7)


@pytest.mark.parametrize(("excess", "allowed"), [(0.0, True), (5e-7, True), (3e-6, False), (0.1, False)])
def test_rounding_is_forgiven_and_nothing_more(excess, allowed):
    x = torch.full((2, 1, 1, 1), 0.5, dtype=torch.float64)
    x_adv = x.clone()
    x_adv[1] += 0.1 + excess
    if allowed:
        assert check_adversarial("pgd", x_adv, x, LINF).max() == pytest.approx(0.1 + excess)
    else:
        with pytest.raises(ValueError, match=r"attack 'pgd' left the threat set: linf .* at eps 0.100000"):
            check_adversarial("pgd", x_adv, x, LINF)

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fsr_lab.core import losses

# the worked example of the method's specification: clean and adversarial logits of one sample of class 1
Z = torch.tensor([[2.0, 1.0, 0.5, -1.0, 0.0]])
Z_ADV = torch.tensor([[1.0, 1.5, 0.0, 0.5, -0.5]])
Y = torch.tensor([1])


def rows(seed, count=6, classes=5):
    rng = np.random.default_rng(seed)
    return 3 * rng.standard_normal((count, classes)), rng.integers(classes, size=count)


def softmax(z):
    e = [math.exp(value) for value in z]
    return [value / sum(e) for value in e]


def others(z, y):
    return [value for k, value in enumerate(z) if k != y]


def ref_cross_entropy(z, y):
    return -math.log(softmax(z)[y])


def ref_margin(z, y):
    return z[y] - max(others(z, y))


def ref_dlr(z, y):
    first, _, third, *_ = sorted(z, reverse=True)
    return -(z[y] - max(others(z, y))) / (first - third)


def ref_boosted(z, y):
    p = softmax(z)
    return -math.log(p[y]) - math.log(1.0001 - max(others(p, y)) + 1e-12)


GOLDEN = [
    (losses.cross_entropy(Z, Y), 1.574438),
    (losses.margin(Z, Y), -1.0),
    (losses.dlr(Z, Y), 0.666667),
    (losses.targeted_dlr(Z, Y, torch.tensor([2])), -0.285714),
    (losses.kl(Z, Z_ADV), 0.290988),
    (losses.boosted_cross_entropy(Z_ADV, Y), 1.148062),
    (losses.most_likely_wrong(Z, Y).float(), 0.0),
    (losses.most_likely_wrong(Z_ADV, Y).float(), 0.0),
    (losses.cross_entropy(Z, Y) + 6 * losses.kl(Z, Z_ADV), 3.320366),  # TRADES, beta 6
    (
        losses.boosted_cross_entropy(Z_ADV, Y) + 5 * losses.kl(Z, Z_ADV) * (1 - Z.softmax(1)[:, 1]),
        2.301649,  # MART, lambda 5
    ),
]


@pytest.mark.parametrize(("found", "wanted"), GOLDEN)
def test_golden_values(found, wanted):
    assert found.shape == (1,)
    assert found.item() == pytest.approx(wanted, abs=6e-7)


def test_golden_probabilities():
    p = [math.exp(-losses.cross_entropy(Z, torch.tensor([k])).item()) for k in range(5)]
    assert p == pytest.approx([0.563021, 0.207124, 0.125627, 0.028031, 0.076197], abs=6e-7)


@pytest.mark.parametrize(
    ("loss", "reference"),
    [
        (losses.cross_entropy, ref_cross_entropy),
        (losses.margin, ref_margin),
        (losses.dlr, ref_dlr),
        (losses.boosted_cross_entropy, ref_boosted),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_each_sample_follows_the_formula(loss, reference, seed):
    z, y = rows(seed)
    found = loss(torch.tensor(z), torch.tensor(y))
    assert found.dtype == torch.float64
    wanted = [reference(list(row), label) for row, label in zip(z, y, strict=True)]
    assert found.tolist() == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_kl_follows_the_formula(seed):
    p_logits, q_logits = rows(seed)[0], rows(seed + 10)[0]
    wanted = [
        sum(p * math.log(p / q) for p, q in zip(softmax(left), softmax(right), strict=True))
        for left, right in zip(p_logits, q_logits, strict=True)
    ]
    found = losses.kl(torch.tensor(p_logits), torch.tensor(q_logits))
    assert found.tolist() == pytest.approx(wanted, rel=1e-9)


def test_targeted_dlr_follows_the_formula():
    z, y = rows(4)
    t = (y + 2) % 5
    wanted = []
    for row, label, target in zip(z, y, t, strict=True):
        ranked = sorted(row, reverse=True)
        wanted.append(-(row[label] - row[target]) / (ranked[0] - (ranked[2] + ranked[3]) / 2))
    found = losses.targeted_dlr(torch.tensor(z), torch.tensor(y), torch.tensor(t))
    assert found.tolist() == pytest.approx(wanted, rel=1e-9)


def test_kl_sends_gradients_through_both_sides():
    left, right = Z.clone().requires_grad_(), Z_ADV.clone().requires_grad_()
    losses.kl(left, right).sum().backward()
    torch.testing.assert_close(right.grad, right.detach().softmax(1) - left.detach().softmax(1))
    p = left.detach().softmax(1)
    ratio = left.detach().log_softmax(1) - right.detach().log_softmax(1)
    torch.testing.assert_close(left.grad, p * (ratio - (p * ratio).sum()))


def test_kl_of_a_saturated_network_is_finite():
    sure, opposite = torch.tensor([[200.0, -200.0]]), torch.tensor([[-200.0, 200.0]]).requires_grad_()
    value = losses.kl(sure, opposite)
    assert value.item() == pytest.approx(400.0)
    value.sum().backward()
    assert opposite.grad.tolist() == [[-1.0, 1.0]]


@given(st.data())
def test_the_most_likely_wrong_class_is_wrong_and_the_likeliest(data):
    classes = data.draw(st.integers(2, 6))
    # few values, so that ties are common; the largest float32 among them
    value = st.sampled_from([-3.4e38, -1.0, 0.0, 1.0, 3.4e38])
    z = data.draw(st.lists(st.lists(value, min_size=classes, max_size=classes), min_size=1, max_size=4))
    y = data.draw(st.lists(st.integers(0, classes - 1), min_size=len(z), max_size=len(z)))
    for dtype in (torch.float32, torch.float64):
        wrong = losses.most_likely_wrong(torch.tensor(z, dtype=dtype), torch.tensor(y))
        assert wrong.dtype == torch.int64
        for row, label, found in zip(z, y, wrong.tolist(), strict=True):
            assert found != label
            assert row[found] == max(others(row, label))


@given(st.integers(0, 50))
def test_the_margin_is_positive_exactly_where_the_prediction_is_right(seed):
    z, y = (torch.tensor(values) for values in rows(seed))
    assert torch.equal(losses.margin(z, y) > 0, z.argmax(1) == y)


def test_a_tie_is_not_right():
    assert losses.margin(torch.tensor([[1.0, 1.0]]), torch.tensor([0])).item() == 0


def test_the_most_likely_wrong_class_takes_no_gradient():
    assert not losses.most_likely_wrong(Z.clone().requires_grad_(), Y).requires_grad


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_dlr_does_not_change_with_scale_and_shift(scale):
    torch.testing.assert_close(losses.dlr(scale * Z + 3, Y), losses.dlr(Z, Y), rtol=1e-4, atol=0)


def test_too_few_classes_are_refused():
    with pytest.raises(ValueError, match="at least 3 classes for dlr, got 2; take the loss Margin"):
        losses.dlr(torch.zeros(1, 2), torch.tensor([0]))
    with pytest.raises(ValueError, match="at least 4 classes for targeted dlr, got 3; take the loss TargetedMargin"):
        losses.targeted_dlr(torch.zeros(1, 3), torch.tensor([0]), torch.tensor([1]))


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.margin, losses.dlr, losses.boosted_cross_entropy])
def test_low_precision_logits_are_judged_in_float32(loss):
    logits = torch.tensor([[2.0, 1.0, 0.5, -1.0, 0.25]])  # exact in bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        low = loss(logits.bfloat16(), Y)
    assert low.dtype == torch.float32
    assert torch.equal(low, loss(logits, Y))

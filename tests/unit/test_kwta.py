"""kWTA keeps what its definition keeps, on maps worked out by hand."""

import pytest
import torch

from fsr_lab.core.route import Route
from fsr_lab.core.types import FeatureShape
from fsr_lab.defense.kwta import KWTA

SHAPE = FeatureShape(2, 2, 3)
FEATURES = torch.tensor([
    [[[1.0, 5.0, -2.0], [4.0, 0.5, 3.0]], [[-1.0, -5.0, -2.0], [-4.0, -0.5, -3.0]]],
    [[[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], [[9.0, 8.0, 7.0], [6.0, 7.0, 1.0]]],
])  # fmt: skip


def kept(ratio, over, features=FEATURES):
    return KWTA(SHAPE, 10, ratio=ratio, over=over)(features).features


def test_the_largest_of_each_channel_are_kept_negative_ones_too():
    # k = int(0.5 * 6) = 3; in the last channel two sevens tie for the third place
    wanted = torch.tensor([
        [[[0.0, 5.0, 0.0], [4.0, 0.0, 3.0]], [[-1.0, 0.0, -2.0], [0.0, -0.5, 0.0]]],
        [[[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], [[9.0, 8.0, 7.0], [0.0, 7.0, 0.0]]],
    ])  # fmt: skip
    assert torch.equal(kept(0.5, "space"), wanted)


def test_the_largest_of_a_whole_sample_are_kept():
    # k = int(0.45 * 12) = 5
    wanted = torch.tensor([
        [[[1.0, 5.0, 0.0], [4.0, 0.5, 3.0]], [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]],
        [[[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], [[9.0, 8.0, 7.0], [6.0, 7.0, 0.0]]],
    ])  # fmt: skip
    assert torch.equal(kept(0.45, "volume"), wanted)


def test_at_least_one_is_kept():
    # int(0.1 * 6) is nought
    assert torch.equal(kept(0.1, "space").flatten(2).sum(2), torch.tensor([[5.0, -0.5], [0.0, 9.0]]))
    assert torch.equal(kept(0.01, "volume").flatten(1).sum(1), torch.tensor([5.0, 9.0]))
    ones = torch.randn(2, 3, 1, 1)
    assert torch.equal(kept(0.1, "space", ones), ones)


def test_a_ratio_of_one_keeps_everything():
    for over in ("space", "volume"):
        assert torch.equal(kept(1, over), FEATURES)


@pytest.mark.parametrize("over", ["space", "volume"])
@pytest.mark.parametrize(("ratio", "size"), [(0.1, (10, 12)), (0.2, (7, 3)), (0.29, (10, 10)), (0.6, (5, 1))])
def test_the_kept_fraction_is_the_ratio_and_losers_are_smaller(ratio, size, over):
    features = torch.randn(3, 4, *size)
    found = kept(ratio, over, features)
    hundredths = round(100 * ratio)
    for values, groups in ((features.flatten(2), found.flatten(2)), (features.flatten(1), found.flatten(1))):
        if (values.ndim == 3) != (over == "space"):
            continue
        count = max(hundredths * values.shape[-1] // 100, 1)
        winners = groups != 0
        assert (winners.sum(-1) == count).all()
        assert torch.equal(groups[winners], values[winners])
        lowest = values.masked_fill(~winners, torch.inf).amin(-1)
        assert (lowest > values.masked_fill(winners, -torch.inf).amax(-1)).all()


def test_ties_are_kept_beyond_k():
    assert torch.equal(kept(0.2, "space", torch.ones(1, 2, 3, 3)), torch.ones(1, 2, 3, 3))


def test_gradients_pass_winners_alone():
    x = FEATURES.clone().requires_grad_()
    KWTA(SHAPE, 10, ratio=0.5)(x).features.sum().backward()
    wanted = torch.tensor([[[0, 1, 0, 1, 0, 1], [1, 0, 1, 0, 1, 0]], [[1] * 6, [1, 1, 1, 0, 1, 0]]])
    assert torch.equal(x.grad.flatten(2).long(), wanted)


def test_training_and_evaluation_are_the_same():
    defense = KWTA(SHAPE, 10)
    assert torch.equal(defense.train()(FEATURES, torch.zeros(2).long()).features, defense.eval()(FEATURES).features)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_broken_activations_are_not_hidden(bad):
    features = FEATURES.clone()
    features[0, 0, 0, 0] = bad
    for over in ("space", "volume"):
        assert not kept(0.2, over, features).isfinite().all()
        assert kept(0.2, over, features)[1].isfinite().all()


def test_an_infinite_loser_is_nought():
    features = FEATURES.clone()
    features[0, 0, 0, 2] = -torch.inf
    assert kept(0.5, "space", features)[0, 0, 0, 2] == 0


def test_memory_order_does_not_matter():
    features = torch.randn(2, 4, 5, 6)
    ordered = features.contiguous(memory_format=torch.channels_last)
    for over in ("space", "volume"):
        assert torch.equal(kept(0.3, over, ordered), kept(0.3, over, features))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0}, r"expected ratio in \(0, 1\], got 0"),
        ({"ratio": 1.5}, r"expected ratio in \(0, 1\], got 1.5"),
        ({"ratio": float("nan")}, r"expected ratio in \(0, 1\], got nan"),
        ({"over": "volumes"}, r"no kWTA group named 'volumes'; close names: \['volume'"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        KWTA(SHAPE, 10, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("over", ["space", "volume"])
@pytest.mark.parametrize("rule", ["straight_through", "relu"])
def test_a_route_replaces_the_backward_pass_alone(rule, over):
    defense, x = KWTA(SHAPE, 10, over=over), FEATURES.clone().requires_grad_()
    weigh = torch.randn_like(x)
    found = defense(x, route=Route(mask_gradient=rule)).features
    assert torch.equal(found, defense(x).features)
    (gradient,) = torch.autograd.grad((found * weigh).sum(), x)
    assert torch.equal(gradient, weigh if rule == "straight_through" else weigh * (FEATURES > 0))

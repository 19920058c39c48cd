"""SAP keeps with the probabilities of its definition, and its mean is the activation."""

import math

import pytest
import torch

from fsr_lab.core.crafting import crafting
from fsr_lab.core.route import Route
from fsr_lab.core.types import FeatureShape
from fsr_lab.defense.sap import SAP
from fsr_lab.model.defended import attach
from fsr_lab.model.tiny_cnn import TinyCNN

SHAPE = FeatureShape(2, 1, 2)
FEATURES = torch.tensor([[[[1.0, -3.0]], [[0.0, 4.0]]], [[[0.01, 0.0]], [[0.0, 0.99]]]])


def by_hand(draws):
    """Return q = 1 - exp(-n |a| / sum |a|), n = draws * C * H * W, activation by activation."""
    rows = []
    for sample in FEATURES.double():
        values = sample.flatten().tolist()
        total = sum(abs(value) for value in values)
        rows.append([1 - math.exp(-draws * 4 * abs(value) / total) for value in values])
    return torch.tensor(rows).reshape(FEATURES.shape)


@pytest.mark.parametrize("draws", [2.0, 0.5])
def test_the_keep_probability_is_the_definitions(draws):
    found = SAP(SHAPE, 10, draws=draws).keep_probability(FEATURES)
    torch.testing.assert_close(found, by_hand(draws).float(), atol=1e-6, rtol=1e-5)
    # shares 1/8, 3/8, 0 and 1/2 of n = 8 draws
    first = SAP(SHAPE, 10).keep_probability(FEATURES)[0].flatten().tolist()
    assert first == pytest.approx([1 - math.exp(-1), 1 - math.exp(-3), 0, 1 - math.exp(-4)], abs=1e-6)


def test_what_is_kept_is_divided_by_its_probability_and_the_rest_is_zero():
    defense, q = SAP(SHAPE, 10).eval(), by_hand(2.0).float()
    for _ in range(20):
        found = defense(FEATURES).features
        kept = found != 0
        torch.testing.assert_close(found[kept], (FEATURES / (q + 1e-8))[kept], atol=1e-6, rtol=1e-5)


def many(defense, features, count=20_000):
    """Return independent draws (count, C, H, W) for one sample (C, H, W)."""
    return defense(features.expand(count, *features.shape)).features


@pytest.mark.parametrize("index", [0, 1])
def test_over_many_draws_the_mean_is_the_activation_and_the_share_kept_is_q(index):
    count = 20_000
    found = many(SAP(SHAPE, 10).eval(), FEATURES[index], count).double()
    q = by_hand(2.0)[index].double()
    share = (found != 0).double().mean(0)
    assert ((share - q).abs() <= 4 * (q * (1 - q) / count).sqrt() + 1e-9).all()
    # the variance of a keep / q is a^2 (1 - q) / q
    spread = FEATURES[index].double().abs() * ((1 - q) / q.clamp_min(1e-12)).sqrt()
    assert ((found.mean(0) - FEATURES[index]).abs() <= 4 * spread / count**0.5 + 1e-6).all()
    assert (spread > 0).sum() >= 2


def test_each_activation_and_sample_has_its_own_draw():
    defense = SAP(SHAPE, 10, draws=0.5).eval()
    kept = defense(torch.ones(2000, 2, 1, 2)).features.flatten(1) != 0
    assert len({tuple(row) for row in kept.tolist()}) == 16
    correlation = torch.corrcoef(kept.T.float()) - torch.eye(4)
    assert correlation.abs().max() < 4 / 2000**0.5


def test_it_approximates_draws_with_replacement():
    # the paper: n draws from P; kept is what is drawn at least once, with probability 1 - (1 - P)^n
    features = torch.rand(1, 8, 4, 4)
    share = (features / features.sum()).double()
    literal = 1 - (1 - share) ** (2 * 128)
    found = SAP(FeatureShape(8, 4, 4), 10).keep_probability(features).double()
    torch.testing.assert_close(found, literal, atol=5e-3, rtol=0)
    drawn = torch.multinomial(share.flatten().expand(4000, -1), 2 * 128, replacement=True)
    frequency = torch.zeros(4000, 128).scatter(1, drawn, 1.0).mean(0).double()
    assert (frequency - found.flatten()).abs().max() < 5e-3 + 4 * 0.5 / 4000**0.5


def test_the_expected_gradient_is_that_of_the_expected_output():
    x = FEATURES[0].expand(20_000, 2, 1, 2).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(SAP(SHAPE, 10).eval()(x).features.sum(), x)
    q = by_hand(2.0)[0]
    for mean, probability in zip(gradient.mean(0).flatten().tolist(), q.flatten().tolist(), strict=True):
        if probability > 0:
            error = 4 * ((1 - probability) / probability / 20_000) ** 0.5
            assert mean == pytest.approx(1, abs=error + 1e-4)


@pytest.mark.parametrize(("noise", "in_training"), [("eval", False), ("always", True)])
def test_when_it_prunes(noise, in_training):
    defense = SAP(SHAPE, 10, noise=noise)
    assert defense.training_noise == in_training
    assert defense.eval_noise
    for training, prunes in ((True, in_training), (False, True)):
        defense.train(training)
        state = torch.get_rng_state()
        found = [defense(FEATURES, torch.zeros(2).long()).features for _ in range(8)]
        assert torch.equal(torch.get_rng_state(), state) != prunes
        assert all(torch.equal(features, FEATURES) for features in found) != prunes


def test_it_prunes_while_a_network_in_training_is_attacked(batch):
    model = attach(TinyCNN(num_classes=4), {"block1.conv": SAP, "block2.conv": SAP}, (3, 8, 8), 4).train()
    assert torch.equal(model(batch[0]), model(batch[0]))
    with crafting(model) as attacked:
        assert not torch.equal(attacked(batch[0]), attacked(batch[0]))
    assert torch.equal(model(batch[0]), model(batch[0]))


def test_a_sample_of_zeros_stays_zero():
    found = SAP(SHAPE, 10).eval()(torch.zeros(3, 2, 1, 2)).features
    assert torch.equal(found, torch.zeros(3, 2, 1, 2))


def test_tiny_activations_stay_finite():
    features = torch.tensor([1e-30, 1e-12, 1.0, 1e30]).reshape(1, 4, 1, 1)
    assert many(SAP(FeatureShape(4, 1, 1), 10).eval(), features[0], 1000).isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 0}, "expected draws above 0, got 0"),
        ({"draws": float("nan")}, "expected draws above 0, got nan"),
        ({"noise": "evaluation"}, "no SAP noise named 'evaluation'"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        SAP(SHAPE, 10, **options)
    assert "\n" not in str(caught.value)


def test_straight_through_a_draw_the_gradient_is_the_identitys():
    defense, x, weigh = SAP(SHAPE, 10).eval(), FEATURES.clone().requires_grad_(), torch.randn_like(FEATURES)
    found = []
    for route in (None, Route(mask_gradient="straight_through")):
        torch.manual_seed(3)
        found.append(defense(x, route=route).features)
    assert torch.equal(*found)
    plain, through = (torch.autograd.grad((features * weigh).sum(), x)[0] for features in found)
    assert torch.equal(through, weigh)
    assert not torch.equal(plain, weigh)

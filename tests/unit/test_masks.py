"""The masks of FSR and of its ablations, each against its definition written out in float64."""

import itertools

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import nn

from fsr_lab.core.route import Route
from fsr_lab.defense.fsr_nets import head as build_head
from fsr_lab.defense.masks import (
    drawn,
    has_temperature,
    learnt_mask,
    literal,
    mean_over_noise,
    pooled,
)
from fsr_lab.defense.unlearnt_masks import attribution, coin_flips, fixed_half, unlearnt_mask, upper_half

TAU = 0.1
SCORES = torch.tensor([-30.0, -3.0, -0.7, -0.2, -0.013, 0.0, 0.007, 0.2, 0.7, 3.0, 30.0])
LEARNT = ("gumbel", "gumbel_literal", "sigmoid", "tempered", "hard_st", "gumbel_st")


def mask_of(mask, score, noise=None, tau=TAU, route=None, samples=20):
    return learnt_mask(mask, score, noise, tau, route or Route(), samples=samples)


def sigmoid(values):
    return 1 / (1 + np.exp(-np.asarray(values, dtype=np.float64)))


def gradient(mask, score, noise=None):
    score = score.clone().requires_grad_()
    return torch.autograd.grad(mask_of(mask, score, noise).sum(), score)[0]


def slope(score, tau):
    s = sigmoid(score / tau)
    return torch.from_numpy(s * (1 - s) / tau).float()


def released_mask(r, u1, u2, tau):
    """Eq. 2 with the released code's constants: 1e-8 in every logarithm and in the temperature."""
    p = sigmoid(r)
    g1, g2 = (-np.log(-np.log(np.asarray(u, dtype=np.float64) + 1e-8) + 1e-8) for u in (u1, u2))
    robust = (np.log(p + 1e-8) + g1) / (tau + 1e-8)
    other = (np.log(1 - p + 1e-8) + g2) / (tau + 1e-8)
    highest = np.maximum(robust, other)
    return np.exp(robust - highest) / (np.exp(robust - highest) + np.exp(other - highest))


@pytest.mark.parametrize(
    ("mask", "wanted"),
    [
        ("gumbel", lambda r: sigmoid(r / TAU)),
        ("gumbel_literal", lambda r: released_mask(r, 0.5, 0.5, TAU)),
        ("tempered", lambda r: sigmoid(r / TAU)),
        ("sigmoid", sigmoid),
        ("hard_st", lambda r: (r > 0).astype(np.float64)),
        ("gumbel_st", lambda r: (r > 0).astype(np.float64)),
        ("hard", lambda r: (r > 0).astype(np.float64)),
    ],
)
def test_without_noise_each_mask_is_its_definition(mask, wanted):
    found = mask_of(mask, SCORES)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), wanted(SCORES.double().numpy()), atol=2e-6)


@pytest.mark.parametrize(
    ("mask", "wanted"),
    [
        ("gumbel", lambda r, g: sigmoid((r + g) / TAU)),
        ("gumbel_st", lambda r, g: (r + g > 0).astype(np.float64)),
    ],
)
def test_noise_is_added_to_the_score(mask, wanted):
    noise = torch.randn(len(SCORES))
    found = mask_of(mask, SCORES, noise)
    np.testing.assert_allclose(found.numpy(), wanted(*(v.double().numpy() for v in (SCORES, noise))), atol=2e-6)


def test_the_literal_form_draws_for_robust_first_and_then_for_the_rest(monkeypatch):
    u = torch.rand(2, len(SCORES))
    draws = iter(u)
    monkeypatch.setattr(torch, "rand_like", lambda like, **_: next(draws).to(like))
    noise = drawn("gumbel_literal", SCORES)
    assert noise.shape == (2, *SCORES.shape)
    found = mask_of("gumbel_literal", SCORES, noise)
    np.testing.assert_allclose(
        found.numpy(), released_mask(*(v.double().numpy() for v in (SCORES, *u)), TAU), atol=1e-4
    )


def test_golden_training_mask_in_the_literal_form(monkeypatch):
    draws = iter((0.2, 0.7))
    monkeypatch.setattr(torch, "rand_like", lambda like, **_: torch.full_like(like, next(draws)))
    score = torch.tensor([0.3], dtype=torch.float64)
    noise = drawn("gumbel_literal", score)
    assert noise.flatten().tolist() == pytest.approx([-0.4759, 1.0309], abs=6e-5)
    assert mask_of("gumbel_literal", score, noise).item() == pytest.approx(5.7394e-6, rel=1e-4)


def test_the_literal_form_stays_near_the_logit_form_and_within_its_floor(monkeypatch):
    r = torch.linspace(-3, 3, 601)
    assert (literal(r, TAU) - torch.sigmoid(r / TAU)).abs().max() < 1e-5
    # at a temperature of 10 the floor shows: the logit ends at about 18.4 / 10
    assert literal(torch.tensor([1e4]), 10.0).logit().item() == pytest.approx(1.842, abs=1e-3)
    monkeypatch.setattr(torch, "rand_like", lambda like, **_: torch.tensor([0.0, 1 - 2**-24]).to(like))
    low, high = drawn("gumbel_literal", torch.zeros(2))[0].tolist()
    assert low == pytest.approx(-2.9135, abs=1e-3)
    assert 16 < high < 18.43


@pytest.mark.parametrize("mask", ["gumbel_literal", "gumbel", "hard_st"])
def test_saturated_scores_give_finite_masks_and_gradients(mask):
    score = torch.tensor([-1e4, -100.0, 100.0, 1e4]).requires_grad_()
    noise = drawn(mask, score) if mask != "hard_st" else None
    found = mask_of(mask, score, noise)
    found.sum().backward()
    assert found.isfinite().all()
    assert score.grad.isfinite().all()


def test_autocast_does_not_reach_the_literal_form():
    noise = drawn("gumbel_literal", SCORES)
    wanted = mask_of("gumbel_literal", SCORES, noise)
    with torch.autocast("cpu", torch.bfloat16):
        found = mask_of("gumbel_literal", SCORES, noise)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("mask", ["gumbel", "gumbel_literal", "gumbel_st"])
@pytest.mark.parametrize(("r", "mean"), [(0.0, 0.5), (0.5, 0.6216), (2.0, 0.8795)])
def test_statistics_of_equation_2(mask, r, mean):
    n = 40_000
    score = torch.full((n,), r)
    found = mask_of(mask, score, drawn(mask, score))
    probability = float(sigmoid(r))
    error = 4 * (probability * (1 - probability) / n) ** 0.5
    assert (found > 0.5).float().mean().item() == pytest.approx(probability, abs=error)
    assert found.mean().item() == pytest.approx(probability if mask == "gumbel_st" else mean, abs=error)
    assert (set(found.unique().tolist()) == {0.0, 1.0}) == (mask == "gumbel_st")


def test_hard_masks_pass_the_gradient_of_the_tempered_one():
    noise = torch.randn(len(SCORES))
    torch.testing.assert_close(gradient("hard_st", SCORES), slope(SCORES, TAU))
    torch.testing.assert_close(gradient("hard", SCORES), slope(SCORES, TAU))
    torch.testing.assert_close(gradient("gumbel_st", SCORES, noise), slope(SCORES + noise, TAU))
    torch.testing.assert_close(gradient("sigmoid", SCORES), slope(SCORES, 1.0))


def test_the_mean_over_noise_is_over_quantiles_of_the_logistic():
    quantiles = stats.logistic.ppf((np.arange(7) + 0.5) / 7)
    wanted = np.mean([sigmoid((SCORES.double().numpy() + q) / TAU) for q in quantiles], axis=0)
    np.testing.assert_allclose(mask_of("mc", SCORES, samples=7).numpy(), wanted, atol=1e-6)
    torch.testing.assert_close(mask_of("mc", SCORES, samples=1), torch.sigmoid(SCORES / TAU))


@pytest.mark.parametrize("r", [0.0, 0.5, 2.0])
def test_the_mean_over_much_noise_is_the_mean_mask(r):
    def weighted(g):
        return sigmoid((r + g) / TAU) * stats.logistic.pdf(g)

    wanted, _ = integrate.quad(weighted, -40, 40, points=[-r], limit=200)
    assert mean_over_noise(torch.tensor(r), TAU, samples=2000).item() == pytest.approx(wanted, abs=1e-5)
    assert mean_over_noise(torch.tensor(r), TAU, samples=20).item() == pytest.approx(wanted, abs=3e-3)


@pytest.mark.parametrize("mask", [*LEARNT, "hard", "mc"])
def test_what_has_a_temperature_depends_on_it(mask):
    moved = mask_of(mask, SCORES, tau=1.0) - mask_of(mask, SCORES, tau=0.1)
    assert bool(moved.abs().max() > 0.01) == has_temperature(mask)


@pytest.mark.parametrize("mask", [*LEARNT, "mc"])
def test_a_route_reaches_every_mask(mask):
    score = SCORES.clone().requires_grad_()
    assert not mask_of(mask, score, route=Route(mask_gradient="stop")).requires_grad
    (passed,) = torch.autograd.grad(mask_of(mask, score, route=Route(mask_gradient="straight_through")).sum(), score)
    assert torch.equal(passed, torch.ones_like(SCORES))
    surrogate = mask_of(mask, score, route=Route(backward_tau=2.0))
    torch.testing.assert_close(torch.autograd.grad(surrogate.sum(), score)[0], slope(SCORES, 2.0))
    torch.testing.assert_close(surrogate, mask_of(mask, SCORES))


def test_a_coarser_mask_has_the_mean_score():
    score = torch.randn(2, 3, 4, 5)
    channel = [[score[n, c].sum().item() / 20 for c in range(3)] for n in range(2)]
    spatial = [[[score[n, :, i, j].sum().item() / 3 for j in range(5)] for i in range(4)] for n in range(2)]
    torch.testing.assert_close(pooled(score, "channel"), torch.tensor(channel)[:, :, None, None])
    torch.testing.assert_close(pooled(score, "spatial"), torch.tensor(spatial)[:, None])
    assert pooled(score, "unit") is score


def unlearnt(mask, features, noise=None, fixed=None, granularity="unit"):
    return unlearnt_mask(
        mask, features, granularity=granularity, noise=noise, fixed=fixed, head=nn.Linear(6, 4), y=None
    )


def test_constant_masks():
    features = torch.randn(2, 6, 4, 4)
    assert torch.equal(unlearnt("ones", features).expand_as(features), torch.ones_like(features))
    assert torch.equal(unlearnt("zeros", features).expand_as(features), torch.zeros_like(features))
    assert torch.equal(unlearnt("random", features).expand_as(features), torch.full_like(features, 0.5))


def test_a_random_mask_is_fair_and_binary():
    flips = coin_flips(torch.empty(40_000))
    assert set(flips.unique().tolist()) == {0.0, 1.0}
    assert flips.mean().item() == pytest.approx(0.5, abs=4 * 0.5 / 200)
    assert unlearnt("random", torch.zeros(1, 6, 4, 4), noise=flips) is flips


@pytest.mark.parametrize(("channels", "kept"), [(1, 1), (2, 1), (7, 4), (512, 256)])
def test_a_fixed_random_mask_keeps_half_of_the_channels(channels, kept):
    mask = fixed_half(channels)
    assert mask.shape == (channels, 1, 1)
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert mask.sum() == kept
    assert channels < 512 or not torch.equal(mask, fixed_half(channels))


@pytest.mark.parametrize("size", [(6, 4, 4), (3, 3, 3)])
@pytest.mark.parametrize("granularity", ["unit", "channel", "spatial"])
def test_magnitude_takes_the_larger_half_of_each_sample(size, granularity):
    features = torch.randn(2, *size)
    found = upper_half(features, granularity)
    axes = {"unit": (), "channel": (1, 2), "spatial": (0,)}[granularity]
    for sample, mask in zip(features.double().numpy(), found.numpy(), strict=True):
        sizes = np.abs(sample)
        sizes = sizes.mean(axes, keepdims=True) if axes else sizes
        order = sorted(itertools.product(*(range(n) for n in sizes.shape)), key=lambda at, s=sizes: s[at])
        wanted = np.zeros_like(sizes)
        for at in order[(len(order) + 1) // 2 :]:
            wanted[at] = 1
        np.testing.assert_array_equal(mask, wanted)
    larger, smaller = (unlearnt(m, features, granularity=granularity) for m in ("magnitude", "inverse_magnitude"))
    assert torch.equal(larger, found)
    assert torch.equal(smaller, 1 - found)


def test_zeros_of_a_relu_are_never_among_the_larger():
    features = torch.tensor([0.0, 0.0, 0.0, 5.0, 0.0, 1.0]).reshape(1, 6, 1, 1)
    assert upper_half(features, "unit").flatten().tolist() == [0, 0, 0, 1, 0, 1]
    assert not upper_half(torch.zeros(1, 6, 1, 1), "unit").any()


@pytest.mark.parametrize("hidden", [None, 5])
@pytest.mark.parametrize("given", [True, False])
def test_attribution_is_the_sign_of_the_heads_gradient(hidden, given):
    head = build_head(6, 4, hidden).double()
    features = torch.randn(8, 6, 3, 2, dtype=torch.float64)
    y = torch.arange(8) % 4
    x = features.clone().requires_grad_()
    logits = head(x.mean((2, 3)))
    label = y if given else logits.argmax(1)
    (wanted,) = torch.autograd.grad(logits.gather(1, label[:, None]).sum(), x)
    with torch.no_grad():
        found = attribution(features, head, y if given else None)
    assert found.shape == (8, 6, 1, 1)
    assert torch.equal(found.expand_as(features), (wanted > 0).double())
    assert 0 < found.mean() < 1
    assert given or not torch.equal(found, attribution(features, head, y))


def test_attribution_is_in_full_precision_under_autocast():
    head = build_head(64, 4, 32)
    features = torch.randn(64, 64, 2, 2)
    wanted = attribution(features, head, None)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attribution(features, head, None), wanted)


def test_attribution_trains_nothing():
    head = build_head(6, 4, 5)
    assert not attribution(torch.randn(2, 6, 3, 3), head, torch.tensor([0, 1])).requires_grad

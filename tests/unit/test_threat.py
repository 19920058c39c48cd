import subprocess
import sys
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fsr_lab.core.threat import Threat

EPS = st.one_of(st.just(0.0), st.floats(0, 1))
NORM = st.sampled_from(["linf", "l2"])


def images(seed, low=0.0, high=1.0):
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(3, 2, 4, 4, generator=generator, dtype=torch.float64)


def test_eps_is_read_as_the_field_writes_it():
    assert Threat(norm="linf", eps="8/255") == Threat(norm="linf", eps=8 / 255)
    assert str(Threat(norm="linf", eps="8/255")) == "linf 8/255"
    assert str(Threat(norm="l2", eps=0.5)) == "l2 0.5"


def test_it_is_a_value():
    threat = Threat(norm="l2", eps=0.5)
    assert hash(threat) == hash(Threat(norm="l2", eps="1/2"))
    with pytest.raises(FrozenInstanceError):
        threat.eps = 1.0


@pytest.mark.parametrize(
    ("norm", "eps", "message"),
    [
        ("linff", 0.1, r"no norm named 'linff'; close names: \['linf'\]"),
        ("l1", 0.1, "no norm named 'l1'"),
        ("linf", -0.1, "expected a finite value of at least 0, such as 8/255, got -0.1"),
        ("linf", "-8/255", "of at least 0"),
        ("linf", "large", "expected a number or a fraction such as 8/255, got 'large'"),
        ("linf", float("nan"), "finite"),
    ],
)
def test_what_cannot_be_a_threat_is_refused(norm, eps, message):
    with pytest.raises(ValueError, match=message):
        Threat(norm=norm, eps=eps)


@given(NORM, EPS, st.integers(0, 9))
def test_projection_lands_in_the_set_and_moves_nothing_that_lies_there(norm, eps, seed):
    threat = Threat(norm=norm, eps=eps)
    x, far = images(seed), images(seed + 100, -3, 4)
    once = threat.project(far, x)
    assert threat.measure(once, x).max() <= eps + 1e-12
    assert 0 <= once.min() <= once.max() <= 1
    torch.testing.assert_close(threat.project(once, x), once, atol=1e-12, rtol=0)


@given(st.floats(0, 0.4), st.integers(0, 9))
def test_no_point_of_the_linf_set_is_nearer_than_the_projection(eps, seed):
    x, far = images(seed), images(seed + 100, -3, 4)
    near = Threat(norm="linf", eps=eps).project(far, x).numpy()
    x, far = x.numpy(), far.numpy()
    wanted = np.clip(far, np.maximum(x - eps, 0), np.minimum(x + eps, 1))
    np.testing.assert_allclose(near, wanted, atol=1e-15)


def test_l2_projection_scales_what_is_too_far_and_only_that():
    x = torch.full((2, 1, 2, 2), 0.5)
    x_adv = x.clone()
    x_adv[0, 0, 0] = torch.tensor([0.5 + 0.3, 0.5 - 0.4])  # of length 0.5
    x_adv[1, 0, 0, 0] += 0.2
    found = Threat(norm="l2", eps=0.25).project(x_adv, x)
    wanted = x.clone()
    wanted[0, 0, 0] = torch.tensor([0.5 + 0.15, 0.5 - 0.2])
    wanted[1, 0, 0, 0] += 0.2
    torch.testing.assert_close(found, wanted)


def test_the_ball_is_each_samples_own():
    x = torch.full((2, 1, 2, 2), 0.5)
    x_adv = x.clone()
    x_adv[1] += 0.4
    found = Threat(norm="l2", eps=0.1).project(x_adv, x)
    assert torch.equal(found[0], x[0])
    assert found[1].flatten().tolist() == pytest.approx([0.55] * 4)


@given(NORM, EPS, st.integers(0, 9))
def test_a_random_start_lies_in_the_set(norm, eps, seed):
    threat, x = Threat(norm=norm, eps=eps), images(seed)
    start = threat.random_start(x)
    assert start.dtype == x.dtype
    assert threat.measure(start, x).max() <= eps + 1e-12
    assert 0 <= start.min() <= start.max() <= 1


def test_linf_starts_are_uniform_in_the_cube():
    x = torch.full((500, 1, 2, 2), 0.5, dtype=torch.float64)
    delta = (Threat(norm="linf", eps=0.2).random_start(x) - x).flatten()
    assert stats.kstest(delta.numpy(), stats.uniform(-0.2, 0.4).cdf).pvalue > 0.01


def test_l2_starts_are_uniform_in_the_ball():
    x = torch.full((3000, 1, 2, 2), 0.5, dtype=torch.float64)
    delta = (Threat(norm="l2", eps=0.2).random_start(x) - x).flatten(1)
    length = delta.norm(dim=1)
    # the share of a ball's volume within radius r of its radius 1 is r^d
    assert stats.kstest(((length / 0.2) ** 4).numpy(), "uniform").pvalue > 0.01
    # a coordinate of a uniform direction in four dimensions, squared, is Beta(1/2, 3/2)
    squared = (delta[:, 0] / length) ** 2
    assert stats.kstest(squared.numpy(), stats.beta(0.5, 1.5).cdf).pvalue > 0.01
    assert delta.mean(0).abs().max() < 4 * 0.2 / 3000**0.5


def test_steps_are_steepest_and_a_zero_gradient_moves_nothing():
    x = torch.full((2, 1, 1, 2), 0.5)
    gradient = torch.tensor([[[[3.0, -4.0]]], [[[0.0, 0.0]]]])
    linf = Threat(norm="linf", eps=0.1).step(x, gradient, 0.05)
    assert linf.flatten().tolist() == pytest.approx([0.55, 0.45, 0.5, 0.5])
    l2 = Threat(norm="l2", eps=0.1).step(x, gradient, 0.05)
    assert l2.flatten().tolist() == pytest.approx([0.53, 0.46, 0.5, 0.5])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_each_sample_may_have_its_own_step(norm):
    threat, x, gradient = Threat(norm=norm, eps=0.1), torch.rand(2, 1, 2, 2), torch.randn(2, 1, 2, 2)
    moved = threat.step(x, gradient, torch.tensor([0.05, 0.02]).reshape(2, 1, 1, 1))
    for index, size in enumerate((0.05, 0.02)):
        torch.testing.assert_close(moved[[index]], threat.step(x[[index]], gradient[[index]], size))


def test_a_tiny_l2_gradient_still_gives_a_whole_step():
    x = torch.full((1, 1, 1, 2), 0.5)
    moved = Threat(norm="l2", eps=0.1).step(x, torch.tensor([[[[3e-8, -4e-8]]]]), 0.05)
    assert moved.flatten().tolist() == pytest.approx([0.53, 0.46])


def test_measures_are_taken_in_float64():
    x = torch.zeros(1, 1, 1, 2)
    x_adv = torch.tensor([[[[0.3, 0.4]]]])
    for norm, size in (("linf", np.float32(0.4)), ("l2", np.hypot(np.float64(np.float32(0.3)), np.float32(0.4)))):
        measured = Threat(norm=norm, eps=1).measure(x_adv, x)
        assert measured.dtype == torch.float64
        assert measured.item() == pytest.approx(float(size), rel=1e-15)


def test_a_threat_needs_no_torch():
    code = "import sys; import fsr_lab.core.threat, fsr_lab.core.record; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

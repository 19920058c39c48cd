import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fsr_lab.core.route import Route, mask_by, with_gradient_of

TAU = 0.1
SCORES = torch.tensor([-30.0, -1.0, -0.2, -0.013, 0.0, 0.007, 0.2, 1.0, 30.0])


def gradient(route, score, tau=TAU):
    score = score.clone().requires_grad_()
    mask = mask_by(route, score, tau)
    (found,) = torch.autograd.grad(mask.sum(), score)
    return found


def slope(score, tau):
    """Return s'(r / tau) / tau by its formula."""
    s = 1 / (1 + torch.exp(-score / tau))
    return s * (1 - s) / tau


@pytest.mark.parametrize(("score", "mask"), [(-1, 4.54e-5), (-0.2, 0.119203), (0, 0.5), (0.2, 0.880797), (1, 0.999955)])
def test_golden_masks(score, mask):
    assert mask_by(Route(), torch.tensor([float(score)]), TAU).item() == pytest.approx(mask, abs=6e-7)


@given(st.floats(-40, 40), st.floats(0.01, 5))
def test_the_mask_is_a_sigmoid_of_score_over_tau(score, tau):
    found = mask_by(Route(), torch.tensor([score], dtype=torch.float64), tau).item()
    assert found == pytest.approx(1 / (1 + math.exp(-max(score / tau, -700))), rel=1e-9, abs=1e-300)


def test_a_routes_tau_stands_above_the_modules():
    score = torch.tensor([0.2])
    assert mask_by(Route(tau=0.4), score, TAU).item() == pytest.approx(1 / (1 + math.exp(-0.5)))
    torch.testing.assert_close(gradient(Route(tau=0.4), score), slope(score, 0.4))


def test_as_deployed_the_gradient_is_the_masks_own():
    torch.testing.assert_close(gradient(Route(), SCORES), slope(SCORES, TAU))


@pytest.mark.parametrize("route", [Route(backward_tau=1.0), Route(mask_gradient="straight_through")])
@pytest.mark.parametrize("tau", [TAU, 100.0])
def test_a_surrogate_gradient_leaves_the_forward_value_alone(route, tau):
    found = mask_by(route, SCORES, tau)
    assert torch.equal(found, torch.sigmoid(SCORES / tau))
    assert 0 <= found.min() <= found.max() <= 1


def test_backward_tau_changes_the_gradient_alone():
    torch.testing.assert_close(gradient(Route(backward_tau=1.0), SCORES), slope(SCORES, 1.0))
    both = Route(tau=0.05, backward_tau=2.0)
    torch.testing.assert_close(gradient(both, SCORES), slope(SCORES, 2.0))
    torch.testing.assert_close(mask_by(both, SCORES, TAU), torch.sigmoid(SCORES / 0.05), atol=1e-6, rtol=0)


def test_a_stopped_mask_has_its_value_and_no_gradient():
    score = SCORES.clone().requires_grad_()
    mask = mask_by(Route(mask_gradient="stop"), score, TAU)
    assert not mask.requires_grad
    assert torch.equal(mask, torch.sigmoid(SCORES / TAU))


def test_a_straight_through_mask_passes_the_gradient_on():
    assert torch.equal(gradient(Route(mask_gradient="straight_through"), SCORES), torch.ones(9))


@pytest.mark.parametrize("route", [Route(), Route(tau=0.4), Route(backward_tau=1.0), Route(mask_gradient="stop")])
def test_another_mask_than_the_deployed_one_keeps_its_value_and_gets_the_routes_gradient(route):
    def rule(score, tau):
        return torch.sigmoid(score * tau)  # rises with its temperature, unlike the deployed mask

    tau = route.tau or TAU
    score = SCORES.clone().requires_grad_()
    mask = mask_by(route, score, TAU, rule)
    torch.testing.assert_close(mask, torch.sigmoid(SCORES * tau))
    if route.mask_gradient == "stop":
        assert not mask.requires_grad
        return
    (found,) = torch.autograd.grad(mask.sum(), score)
    own = torch.sigmoid(SCORES * tau) * (1 - torch.sigmoid(SCORES * tau)) * tau
    torch.testing.assert_close(found, own if route.backward_tau is None else slope(SCORES, 1.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"part": "f_plu"}, r"no part named 'f_plu'; close names: \['f_plus'"),
        ({"mask_gradient": "stopp"}, r"no mask gradient named 'stopp'; close names: \['stop'"),
        ({"tau": 0}, "expected tau above 0, got 0"),
        ({"tau": -0.1}, "expected tau above 0, got -0.1"),
        ({"tau": float("nan")}, "expected tau above 0, got nan"),
        ({"backward_tau": 0}, "expected backward_tau above 0, got 0"),
        ({"backward_tau": 1.0, "mask_gradient": "stop"}, "they exclude each other"),
        ({"backward_tau": 1.0, "mask": torch.ones(1)}, "they exclude each other"),
        ({"mask_gradient": "straight_through", "mask": torch.ones(1)}, "they exclude each other"),
    ],
)
def test_what_cannot_be_followed_is_refused(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        Route(**options)
    assert "\n" not in str(caught.value)


def test_a_route_says_what_it_uses():
    assert Route().uses == {"f_tilde"}
    assert Route(part="f_plus", tau=1.0).uses == {"f_plus", "tau"}
    assert Route(mask_gradient="stop").uses == {"f_tilde", "stop"}
    assert Route(part="f", mask=torch.ones(1)).uses == {"f", "mask"}
    assert Route(backward_tau=0.5).uses == {"f_tilde", "backward_tau"}


@pytest.mark.parametrize("rule", ["relu", "through"])
def test_rules_of_other_masks_exclude_each_other_too(rule):
    assert Route(mask_gradient=rule).uses == {"f_tilde", rule}
    with pytest.raises(ValueError, match="they exclude each other"):
        Route(mask_gradient=rule, backward_tau=1.0)


@pytest.mark.parametrize(
    ("options", "keeps"),
    [
        ({}, True),
        ({"backward_tau": 1.0}, True),
        ({"mask_gradient": "stop"}, True),
        ({"tau": 0.1}, False),
        ({"tau": 0.1, "backward_tau": 1.0}, False),
        ({"part": "f"}, False),
        ({"mask": torch.ones(1)}, False),
    ],
)
def test_a_route_tells_whether_values_stay(options, keeps):
    assert Route(**options).keeps_values == keeps


def test_a_stand_in_lends_its_gradient_alone():
    value, x = torch.tensor([0.1, -3.0, 1e30]), torch.tensor([1e15, 2.0, 0.5], requires_grad=True)
    found = with_gradient_of(x.square() / 2, value.requires_grad_())
    assert torch.equal(found, value)
    given, own = torch.autograd.grad(found.sum(), (x, value), allow_unused=True)
    assert torch.equal(given, x)
    assert own is None

"""The staircase: what it passes on, which gradients it hides, and that what lies under it stays fragile."""

import pytest
import torch

from fsr_lab.attack.along_route import AlongRoute
from fsr_lab.attack.pgd import PGD
from fsr_lab.attack.through import Through
from fsr_lab.core.objective import CrossEntropy, OnLogits
from fsr_lab.core.route import Route
from fsr_lab.core.threat import Threat
from fsr_lab.core.types import FeatureShape
from fsr_lab.defense.staircase import Staircase
from fsr_lab.model.defended import attach
from fsr_lab.model.tiny_cnn import TinyCNN

SHAPE = FeatureShape(1, 1, 4)


def staircase(**options):
    return Staircase(SHAPE, 2, **options).eval()


def row(*values):
    return torch.tensor([[[values]]], dtype=torch.float32)


def test_features_are_rounded_to_the_nearest_step():
    out = staircase(height=0.5)(row(0.0, 0.2, 0.3, -0.9)).features
    assert torch.equal(out, row(0.0, 0.0, 0.5, -1.0))


def test_in_training_mode_it_is_not_there():
    features = row(0.1, 0.2, 0.3, 0.4)
    assert Staircase(SHAPE, 2).train()(features).features is features


def test_a_gentle_one_has_the_slope_of_its_sigmoid():
    features = row(0.25, 0.3, 0.7, 0.75).requires_grad_()
    out = staircase(height=1, tau=0.5)(features).features
    expected = torch.sigmoid((features.detach() - 0.5) / 0.5)
    torch.testing.assert_close(out.detach(), expected)
    (gradient,) = torch.autograd.grad(out.sum(), features)
    torch.testing.assert_close(gradient, expected * (1 - expected) / 0.5)


@pytest.mark.parametrize(
    ("route", "slope"),
    [
        (None, 0.0),
        (Route(mask_gradient="straight_through"), 1.0),
        (
            Route(backward_tau=0.5),
            float(torch.sigmoid(torch.tensor(-0.4))) * float(torch.sigmoid(torch.tensor(0.4))) * 2,
        ),
    ],
)
def test_a_route_gives_the_gradient_back_and_changes_no_value(route, slope):
    features = row(0.3, 0.3, 0.3, 0.3).requires_grad_()
    out = staircase(height=1)(features, route=route).features
    assert torch.equal(out, row(0.0, 0.0, 0.0, 0.0))
    (gradient,) = torch.autograd.grad(out.sum(), features)
    torch.testing.assert_close(gradient, torch.full_like(gradient, slope))


@pytest.mark.parametrize("options", [{"height": 0}, {"tau": 0}])
def test_nothing_below_a_step_of_some_size(options):
    with pytest.raises(ValueError, match="above 0"):
        staircase(**options)


def test_it_hides_the_gradient_of_a_network_that_stays_as_fragile():
    torch.manual_seed(0)
    backbone = TinyCNN(num_classes=2)
    x = torch.rand(64, 3, 8, 8)
    y = (x[:, 0].mean((1, 2)) > x[:, 1].mean((1, 2))).long()
    model = attach(backbone, {"block2": Staircase}, (3, 8, 8), 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(model.train()(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    plain = PGD(threat=Threat(norm="linf", eps=0.1), steps=20, relative_step=0.1, random_start=False)
    through = Through(
        view=AlongRoute(route=Route(mask_gradient="straight_through")), objective=OnLogits(CrossEntropy())
    )
    bypassed = PGD(
        threat=plain.threat, steps=20, relative_step=0.1, random_start=False, objective=through
    )  # fmt: skip

    def accuracy(images):
        with torch.no_grad():
            return float((model(images).argmax(1) == y).float().mean())

    clean = accuracy(x)
    assert clean > 0.8
    assert accuracy(plain(model, x, y)) > clean - 0.1
    assert accuracy(bypassed(model, x, y)) < 0.1

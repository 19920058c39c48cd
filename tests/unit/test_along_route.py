"""The view along a route: whoever knows it follows it, all else is as deployed."""

import pytest
import torch

from fsr_lab.attack.along_route import AlongRoute
from fsr_lab.attack.watched import Watched
from fsr_lab.core.route import Route
from fsr_lab.defense.cas import CAS
from fsr_lab.defense.fd import FD
from fsr_lab.defense.fsr import FSR
from fsr_lab.defense.kwta import KWTA
from fsr_lab.evaluation.counting import Counted
from fsr_lab.model.defended import attach
from fsr_lab.model.tiny_cnn import TinyCNN

SITES = {"block1.conv": FD, "block1.relu:instead": KWTA, "block2": CAS, "avgpool:in": FSR}


@pytest.fixture
def model():
    return attach(TinyCNN(num_classes=4), SITES, (3, 8, 8), 4).eval()


@pytest.mark.parametrize(
    ("route", "points"),
    [
        (Route(), ["block1.relu:instead", "block2", "avgpool:in"]),
        (Route(tau=1.0), ["block2", "avgpool:in"]),
        (Route(backward_tau=1.0), ["block2", "avgpool:in"]),
        (Route(mask_gradient="straight_through"), ["block1.relu:instead", "avgpool:in"]),
        (Route(mask_gradient="relu"), ["block1.relu:instead"]),
        (Route(part="f_plus", mask_gradient="stop"), ["avgpool:in"]),
    ],
)
@pytest.mark.parametrize("wrap", [lambda model: model, Counted, Watched])
def test_every_defence_that_knows_the_route_follows_it(route, points, wrap, model, batch):
    view, x = AlongRoute(route=route), batch[0].clone().requires_grad_()
    wanted = model.routed(dict.fromkeys(points, route))
    found = view(wrap(model))
    assert view.lacks(wrap(model), x) is None
    assert torch.equal(found(x), wanted(x))
    assert torch.equal(*(torch.autograd.grad(each(x).square().sum(), x)[0] for each in (found, wanted)))
    assert list(found.forward_with_aux(x).aux) == list(SITES)
    assert view.keeps_values == route.keeps_values == torch.equal(found(x), model(x))


@pytest.mark.parametrize("wrap", [lambda model: model, Counted])
def test_a_route_that_nobody_knows_is_told_and_refused(wrap, model, batch):
    view = AlongRoute(route=Route(mask_gradient="through"))
    for network in (model, TinyCNN(num_classes=4), lambda x: x.mean((2, 3))):
        assert view.lacks(wrap(network), batch[0]) == "no defence of the network knows the route through"
        with pytest.raises(ValueError, match="no defence of the network knows the route through"):
            view(wrap(network))


def test_its_passes_count(model, batch):
    counted = Counted(model)
    AlongRoute(route=Route(tau=1.0))(counted)(batch[0])
    assert counted.forwards == 8

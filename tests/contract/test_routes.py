"""What every route of every defence of conf/defense keeps: what is declared runs, and what keeps values keeps them."""

from typing import get_args

import pytest
import torch

from fsr_lab.core.crafting import Policy, crafting
from fsr_lab.core.route import MaskGradient, Part, Route
from fsr_lab.defense.staircase import Staircase
from fsr_lab.engine.build import build_model

WAYS = {
    **{part: Route(part=part) for part in get_args(Part)},
    **{rule: Route(mask_gradient=rule) for rule in get_args(MaskGradient) if rule != "exact"},
    "tau": Route(tau=0.5),
    "backward_tau": Route(backward_tau=0.5),
    "tau and backward_tau": Route(tau=0.5, backward_tau=2.0),
    "mask": Route(mask=torch.full((1, 1, 1, 1), 0.25)),
    "rescaled": Route(rescaled=True),
}


@pytest.fixture
def model(module_name, compose_config, toy):
    return build_model(compose_config(*toy, f"defense={module_name}")).eval()


def views(model):
    """Return the network's views along every route that at least one of its defences knows, by name."""
    found = {}
    for name, way in WAYS.items():
        points = [point for point, defense in model.defenses.items() if way.uses <= defense.routes]
        if points:
            found[name] = model.routed(dict.fromkeys(points, way))
    return found


def drawn(call, *args):
    """Return a call's result under the draws of one seed."""
    torch.manual_seed(7)
    return call(*args)


def test_no_defence_declares_what_no_route_uses(model):
    known = frozenset().union(*(way.uses for way in WAYS.values()))
    for defense in model.defenses.values():
        assert defense.routes <= known
        assert defense.routes <= type(defense).routes


def test_values_stay_where_a_route_says_so_with_and_without_auxiliary_tensors(model, batch):
    wanted = drawn(model, batch[0])
    for name, view in views(model).items():
        found = drawn(view, batch[0])
        assert torch.equal(drawn(view.forward_with_aux, batch[0]).logits, found)
        assert torch.equal(found, wanted) or not WAYS[name].keeps_values
        assert torch.equal(drawn(model, batch[0]), wanted)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_are_finite_at_every_precision(dtype, model, batch):
    with crafting(model, Policy(dtype=dtype), example=batch[0]):
        wanted = drawn(model, batch[0])
        for name, view in views(model).items():
            x = batch[0].clone().requires_grad_()
            logits = drawn(view, x)
            (gradient,) = torch.autograd.grad(logits.logsumexp(1).sum(), x)
            assert gradient.isfinite().all()
            hides_it = any(isinstance(defense, Staircase) for defense in model.defenses.values())
            assert gradient.any() or (hides_it and name == "f_tilde")
            assert torch.equal(logits, wanted) or not WAYS[name].keeps_values


@pytest.mark.slow
def test_a_replaced_backward_pass_compiles_to_one_graph(model, batch):
    torch.compiler.reset()  # networks of other tests count towards its limit of graphs
    found = views(model)
    view = found.get("backward_tau", found.get("straight_through"))
    if view is None:
        return
    wanted = drawn(view, batch[0])
    model.compile(fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(drawn(view, batch[0]), wanted, atol=1e-6, rtol=0)

"""A network in float64: the values of its double copy, gradients where float32 has none, and nothing left behind."""

import copy

import pytest
import torch
from torch import nn

from fsr_lab.attack.float64 import Float64
from fsr_lab.attack.pgd import PGD
from fsr_lab.attack.through import Through
from fsr_lab.attack.watched import Watched
from fsr_lab.core.crafting import Policy
from fsr_lab.core.objective import CrossEntropy, OnLogits
from fsr_lab.core.route import Route
from fsr_lab.core.threat import Threat
from fsr_lab.defense.cas import CAS
from fsr_lab.defense.fsr import FSR
from fsr_lab.evaluation.counting import Counted
from fsr_lab.model.defended import attach
from fsr_lab.model.normalize import Normalize
from fsr_lab.model.tiny_cnn import TinyCNN

PLAIN = OnLogits(CrossEntropy())


def pgd(objective, **options):
    return PGD(**({"threat": Threat(norm="linf", eps=0.05), "steps": 3, "relative_step": 0.5, "random_start": False}
                  | options), objective=objective)  # fmt: skip


@pytest.fixture
def model():
    """A defended network with BatchNorm and normalisation: weights, buffers, and buffers outside the state dict."""
    backbone = TinyCNN(num_classes=4, batch_norm=True)
    Normalize([0.4, 0.5, 0.6], [0.2, 0.3, 0.25]).put_on(backbone)
    network = attach(backbone, {"block1": FSR, "block2": CAS}, (3, 8, 8), 4)
    network.train()(torch.rand(16, 3, 8, 8))
    return network.eval()


@pytest.mark.parametrize("wrap", [lambda model: model, Counted, Watched])
def test_values_and_gradients_are_those_of_a_copy_in_float64(wrap, model, batch):
    x = batch[0].requires_grad_()
    wanted = copy.deepcopy(model).double()
    view = Float64()(wrap(model))
    assert torch.equal(view(x), wanted(x.double()))
    found, other = view.forward_with_aux(x), wanted.forward_with_aux(x.double())
    assert torch.equal(found.logits, other.logits)
    assert torch.equal(found.aux["block2"]["p_probe"], other.aux["block2"]["p_probe"])
    ours, theirs = (torch.autograd.grad(logits.square().sum(), x)[0] for logits in (view(x), wanted(x.double())))
    assert torch.equal(ours, theirs)
    assert ours.dtype == torch.float32
    way = {"block1": Route(part="f"), "block2": Route(tau=1.0)}
    assert torch.equal(view.routed(way)(x), wanted.routed(way)(x.double()))


def test_a_saturated_mask_gets_its_gradient_back():
    """In float32 s(25) is 1, and its derivative nought; in float64 it is e^-25."""
    defense = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Sigmoid(), nn.Flatten())
    with torch.no_grad():
        defense[0].weight.fill_(25.0)
    x = torch.ones(2, 1, 1, 1, requires_grad=True)
    assert not torch.autograd.grad(defense(x).sum(), x)[0].any()
    (gradient,) = torch.autograd.grad(Float64()(defense)(x).sum(), x)
    assert gradient.flatten().tolist() == pytest.approx([25 * 1.3887943864771144e-11] * 2, rel=1e-4)


def test_a_gradient_too_faint_for_float32_keeps_its_direction(linear, batch):
    """At logits 200 apart the cross-entropy's gradient is e^-200 w_1, far below what float32 holds.

    The other half of it, (p_0 - 1) w_0, is nought in float64 too: w_0 points away from w_1, and changes no sign.
    """
    x, y = batch[0], torch.zeros(8, dtype=torch.int64)
    with torch.no_grad():
        linear[1].weight[0], linear[1].weight[2:] = -linear[1].weight[1], 0
        linear[1].bias.copy_(torch.tensor([200.0, 0.0, -1000.0, -1000.0]))
    worst = (x + 0.05 * (linear[1].weight[1] - linear[1].weight[0]).sign().reshape(3, 8, 8)).clamp(0, 1)
    assert torch.equal(pgd(PLAIN)(linear, x, y), x)
    found = pgd(Through(view=Float64(), objective=PLAIN))(linear, x, y)
    torch.testing.assert_close(found, worst, atol=1e-6, rtol=0)


def test_a_gradient_of_nought_stays_nought():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.Threshold(1e9, 0.0))
    x = torch.ones(2, 1, 2, 2, requires_grad=True)
    assert not torch.autograd.grad(Float64()(flat)(x).sum(), x)[0].any()


def test_passes_count_and_the_network_stays(model, batch):
    x, y = batch
    model.train()
    model.backbone.block1[1].eval()
    modes = [module.training for module in model.modules()]
    parameters, buffers = list(model.parameters()), list(model.buffers())
    values = [each.clone() for each in (*parameters, *buffers)]
    counted, attack = Counted(model), pgd(Through(view=Float64(), objective=PLAIN), keep="best")
    found = attack(counted, x, y)
    assert (counted.forwards, counted.backwards) == (2 * 3 * 8, 3 * 8)
    assert torch.equal(found, attack(model, x, y))
    Float64()(model)(x)  # in training mode, where BatchNorm keeps statistics
    assert [module.training for module in model.modules()] == modes
    assert all(one is two for one, two in zip(model.parameters(), parameters, strict=True))
    assert all(one is two for one, two in zip(model.buffers(), buffers, strict=True))
    assert all(torch.equal(each, value) for each, value in zip((*parameters, *buffers), values, strict=True))
    assert all(parameter.requires_grad for parameter in parameters)


def test_a_failing_pass_puts_the_weights_back(model):
    with pytest.raises(ValueError, match="3 channels"):
        Float64()(model)(torch.rand(2, 4, 8, 8))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_the_weights_are_doubled_once_for_an_attack(model, batch, monkeypatch):
    doubled = []
    double = torch.Tensor.double
    monkeypatch.setattr(torch.Tensor, "double", lambda self: doubled.append(self) or double(self))
    attack = pgd(Through(view=Float64(), objective=PLAIN), steps=7)
    attack(model, *batch)
    weights = sum(each.is_floating_point() for each in (*model.parameters(), *model.buffers()))
    assert len(doubled) == 2 * weights + 7  # to prepare and to climb, and an image for every step


@pytest.mark.parametrize("policy", [Policy(dtype="bfloat16"), Policy(channels_last=True, fold=True)])
def test_it_works_at_every_policy(policy, model, batch):
    attack = pgd(Through(view=Float64(), objective=PLAIN), policy=policy)
    assert attack(model, *batch).dtype == torch.float32


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # torch hides it, but for pytest
def test_it_works_on_a_compiled_network(model, batch):
    torch.compiler.reset()  # networks of other tests count towards its limit of graphs
    x = batch[0].requires_grad_()
    wanted, plain = Float64()(model)(x), model(x)
    model.compile(fullgraph=True, backend="aot_eager")
    view = Float64()(model)
    for _ in range(2):
        torch.testing.assert_close(view(x), wanted)
        torch.testing.assert_close(model(x), plain, atol=1e-6, rtol=0)


@pytest.mark.parametrize("wrap", [lambda model: model, Counted, Watched])
def test_what_shows_no_weights_is_told_and_refused(wrap, batch):
    text = "the network shows no weights that could be computed with in float64"
    network = wrap(lambda x: x.mean((2, 3)))
    assert Float64().lacks(network, batch[0]) == text
    with pytest.raises(ValueError, match=text):
        Float64()(network)
    assert Float64().lacks(wrap(TinyCNN()), batch[0]) is None

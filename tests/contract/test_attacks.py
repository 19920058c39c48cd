"""What every attack of conf/attack keeps."""

from dataclasses import fields, is_dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fsr_lab.attack.wrapper import lack_of
from fsr_lab.core.crafting import crafting
from fsr_lab.core.passes import Budgeted
from fsr_lab.core.threat import Threat
from fsr_lab.defense.cas import CAS
from fsr_lab.defense.fsr import FSR
from fsr_lab.evaluation.counting import Counted
from fsr_lab.model.defended import attach
from fsr_lab.model.tiny_cnn import TinyCNN

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def mlp(dtype=torch.float32, pixels=192):
    """A nonlinear network with no ReLU, so that no gradient is exactly zero."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, 6), nn.Tanh(), nn.Linear(6, 4)).to(dtype)


def trained_model():
    """A defended network in the middle of training: mixed modes, frozen parts, gradients not yet used."""
    model = attach(TinyCNN(num_classes=4, batch_norm=True), {"block2": FSR}, (3, 8, 8), 4)
    model.train()
    model.backbone.block1[1].eval()
    model.backbone.fc.weight.requires_grad_(False)
    model(torch.rand(8, 3, 8, 8)).logsumexp(1).sum().backward()
    return model


MOST = {"queries": 60, "population": 10, "directions": 5, "eot": 2, "steps": 20, "restarts": 2}


def brief(attack):
    """The same attack on a small budget: fewer queries, steps and restarts, where it has more."""
    least = {name: min(getattr(attack, name), most) for name, most in MOST.items() if hasattr(attack, name)}
    return carrying_out(replace(attack, **least), brief)


def inside(attack, threat):
    """The same attack within another set, which is that of the attack it carries out if it carries out one."""
    if hasattr(attack, "attack") or hasattr(attack, "attacks"):
        return carrying_out(attack, lambda inner: inside(inner, threat))
    return replace(attack, threat=threat)


def carrying_out(attack, change):
    """The same attack, with what it carries out changed."""
    if hasattr(attack, "attack"):
        return replace(attack, attack=change(attack.attack))
    if isinstance(getattr(attack, "attacks", None), dict):
        return replace(attack, attacks={name: change(inner) for name, inner in attack.attacks.items()})
    if hasattr(attack, "attacks"):
        return replace(attack, attacks=[change(inner) for inner in attack.attacks])
    return attack


def skip_unless_it_concerns(attack, model, x):
    """Skip an attack on what this network does not have."""
    if reason := lack_of(attack, model, x):
        pytest.skip(reason)


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_it_is_a_frozen_keyword_only_value(attack_name, load_attack):
    attack = load_attack(attack_name)
    assert is_dataclass(attack)
    assert type(attack).__dataclass_params__.frozen
    assert all(field.kw_only for field in fields(attack))
    assert attack == replace(attack)
    assert hash(attack) == hash(replace(attack))


def test_eps_of_the_threat_group_moves_it(attack_name, load_attack):
    attack = load_attack(attack_name, "threat.eps=3/255", "threat.norm=l2")
    assert attack.threat == Threat(norm="l2", eps=3 / 255)


@given(
    count=st.integers(1, 3),
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    dtype=st.sampled_from(sorted(DTYPES)),
    norm=st.sampled_from(["linf", "l2"]),
    eps=st.one_of(st.just(0.0), st.just(8 / 255), st.floats(0, 1)),
    levels=st.sampled_from([2, 256]),
)
def test_stays_in_the_threat_set(attack_name, load_attack, count, channels, height, width, dtype, norm, eps, levels):
    attack = brief(inside(load_attack(attack_name), Threat(norm=norm, eps=eps)))
    kind = DTYPES[dtype]
    pixels = channels * height * width
    skip_unless_it_concerns(attack, mlp(kind, pixels), torch.rand(1, channels, height, width, dtype=kind))
    # two levels: every pixel is black or white, so that the box binds everywhere
    x = torch.randint(levels, (count, channels, height, width)).to(kind) / (levels - 1)
    y = torch.randint(4, (count,))
    before = x.clone(), y.clone()
    x_adv = attack(mlp(kind, pixels), x, y)
    assert same((x, y), before)
    assert x_adv.shape == x.shape
    assert x_adv.dtype == kind
    assert not x_adv.requires_grad
    assert x_adv.grad_fn is None
    assert 0 <= x_adv.min() <= x_adv.max() <= 1
    delta = (x_adv.double() - x.double()).flatten(1)
    # x + eps is at most 2: half a unit in the last place of it is what rounding can add to one pixel
    rounding = torch.finfo(kind).eps
    if norm == "linf":
        assert delta.abs().max() <= eps + rounding
    else:
        assert delta.norm(dim=1).max() <= eps + rounding * pixels**0.5


def test_an_image_that_wants_a_gradient_is_left_alone(attack_name, load_attack, batch):
    x, y = batch[0].requires_grad_(), batch[1]
    x_adv = brief(load_attack(attack_name))(trained_model(), x, y)
    assert not x_adv.requires_grad
    assert x.requires_grad
    assert x.grad is None
    assert x_adv.data_ptr() != x.data_ptr()


def test_the_network_is_as_it_was(attack_name, load_attack, batch):
    model = trained_model()
    modes = [module.training for module in model.modules()]
    frozen = [parameter.requires_grad for parameter in model.parameters()]
    objects = list(model.parameters())
    values = [parameter.detach().clone() for parameter in model.parameters()]
    grads = [parameter.grad for parameter in model.parameters()]
    grad_values = [None if grad is None else grad.clone() for grad in grads]
    buffers = [buffer.clone() for buffer in model.buffers()]
    brief(load_attack(attack_name))(model, *batch)
    assert [module.training for module in model.modules()] == modes
    assert not model.backbone.block1[1].training
    assert model.backbone.block2[1].training
    assert [parameter.requires_grad for parameter in model.parameters()] == frozen
    assert all(now is then for now, then in zip(model.parameters(), objects, strict=True))
    assert same(model.parameters(), values)
    assert all(parameter.grad is grad for parameter, grad in zip(model.parameters(), grads, strict=True))
    kept = [(now, then) for now, then in zip(grads, grad_values, strict=True) if now is not None]
    assert len(kept) > 5
    assert all(torch.equal(now, then) for now, then in kept)
    assert same(model.buffers(), buffers)


def test_randomness_is_drawn_by_those_that_say_so_alone(attack_name, load_attack, batch):
    attack = brief(load_attack(attack_name))
    model = trained_model()
    before = torch.get_rng_state()
    attack(model, *batch)
    assert torch.equal(torch.get_rng_state(), before) != attack.is_random


def test_a_seed_repeats_it(attack_name, load_attack, batch):
    attack, model = brief(load_attack(attack_name)), mlp()
    skip_unless_it_concerns(attack, model, batch[0])
    found, asked = [], []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        images = []
        found.append(attack(lambda x, images=images: (images.append(x.detach().clone()), model(x))[1], *batch))
        asked.append(torch.cat([*images, found[-1]]))
    assert torch.equal(asked[0], asked[1])
    # what was asked, not only what was found: two starts may end in one corner of the set
    assert torch.equal(asked[0], asked[2]) != attack.is_random


def test_works_under_inference_mode(attack_name, load_attack, batch):
    # so wide that an attack finds something which moves no sample that it does not fool
    attack, model = brief(load_attack(attack_name, "threat.eps=0.5")), trained_model()
    torch.manual_seed(3)
    wanted = attack(model, *batch)
    torch.manual_seed(3)
    with torch.inference_mode():
        x, y = batch[0].clone(), batch[1].clone()
        assert x.is_inference()
        found = attack(model, x, y)
    assert torch.equal(found, wanted)
    assert not torch.equal(found, batch[0])


def test_a_plain_callable_will_do(attack_name, load_attack, batch):
    attack, model = brief(load_attack(attack_name)), mlp()
    skip_unless_it_concerns(attack, model, batch[0])
    skip_unless_it_concerns(attack, lambda x: model(x), batch[0])
    torch.manual_seed(3)
    wanted = attack(model, *batch)
    torch.manual_seed(3)
    assert torch.equal(attack(lambda x: model(x), *batch), wanted)


def test_it_costs_no_more_than_it_tells_beforehand(attack_name, load_attack, batch):
    # within nothing nobody is fooled, and all go on to the end
    attack, x = brief(load_attack(attack_name, "threat.eps=0")), batch[0][:3]
    if not isinstance(attack, Budgeted):
        pytest.skip("tells no budget")
    networks = mlp(), attach(TinyCNN(num_classes=4), {"block1": CAS, "block2": FSR}, (3, 8, 8), 4)
    for network in (network for network in networks if lack_of(attack, network, x) is None):
        most, model = attack.passes(4).times(len(x)), Counted(network)
        y = model(x).argmax(1)  # right, so that none is spared
        with crafting(model, attack.policy, example=x):
            pass  # what a policy must find out about a network, once, is not the attack's cost
        model.reset()
        attack(model, x, y)
        assert model.forwards <= most.forwards
        assert model.backwards <= most.gradients


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_reaches_the_optimum_of_a_linear_model(attack_name, dtype, load_attack, batch):
    attack = brief(load_attack(attack_name, "threat.eps=0.1", "threat.norm=linf"))
    if not attack.exact_on_linear:
        pytest.skip("declares no known optimum; its own test file shows its strength")
    x, y = batch[0].to(DTYPES[dtype]), batch[1] % 2
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2)).to(x)
    weight = model[1].weight.detach().reshape(2, 3, 8, 8)
    corner = (x + 0.1 * (weight[1 - y] - weight[y]).sign()).clamp(0, 1)
    torch.testing.assert_close(attack(model, x, y), corner, atol=1e-6, rtol=0)


def test_the_batch_does_not_change_a_sample(attack_name, load_attack, batch, classifier):
    attack = load_attack(attack_name)
    if getattr(attack, "random_start", False):
        attack = replace(attack, random_start=False)
    if attack.is_random:
        pytest.skip("draws for the whole batch at once")
    x, y = batch[0].double(), batch[1]
    model = classifier.double()
    skip_unless_it_concerns(attack, model, x)
    whole = attack(model, x, y)
    alone = torch.cat([attack(model, x[[index]], y[[index]]) for index in range(len(y))])
    torch.testing.assert_close(whole, alone, atol=1e-12, rtol=0)

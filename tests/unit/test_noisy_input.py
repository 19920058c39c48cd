"""A network seen through noise: what is drawn, when, and that all else stays."""

import pytest
import torch

from fsr_lab.attack.noisy_input import NoisyInput
from fsr_lab.attack.on_aux import OnAux
from fsr_lab.attack.pgd import PGD
from fsr_lab.attack.through import Through
from fsr_lab.attack.watched import Watched
from fsr_lab.attack.weighted_sum import WeightedSum
from fsr_lab.core.objective import CrossEntropy, OnLogits
from fsr_lab.core.route import Route
from fsr_lab.core.threat import Threat
from fsr_lab.defense.fsr import FSR
from fsr_lab.evaluation.counting import Counted
from fsr_lab.model.defended import attach
from fsr_lab.model.tiny_cnn import TinyCNN

PLAIN = OnLogits(CrossEntropy())


@pytest.fixture
def model():
    return attach(TinyCNN(num_classes=4), {"block1": FSR}, (3, 8, 8), 4).eval()


def drawn(call, *args):
    torch.manual_seed(7)
    return call(*args)


def test_the_network_is_shown_the_image_and_a_normal_draw(batch):
    images = batch[0].repeat(200, 1, 1, 1)
    seen = NoisyInput(std="51/255")(lambda x: x)(images) - images
    assert seen.mean().abs() < 4 * 0.2 / images.numel() ** 0.5
    assert seen.std().item() == pytest.approx(0.2, rel=0.01)
    assert (seen.abs() < 0.2).float().mean().item() == pytest.approx(0.6827, abs=0.005)


@pytest.mark.parametrize("wrap", [lambda model: model, Counted, Watched])
def test_every_pass_draws_anew_in_one_order_whatever_the_strides(wrap, model, batch):
    x, view = batch[0], NoisyInput(std=0.1)(wrap(model))
    torch.manual_seed(7)
    noise = torch.randn(8, 3, 8, 8)
    wanted = model(x + 0.1 * noise)
    for images in (x, x.contiguous(memory_format=torch.channels_last)):
        torch.testing.assert_close(drawn(view, images), wanted, atol=1e-6, rtol=0)
        torch.testing.assert_close(drawn(view.forward_with_aux, images).logits, wanted, atol=1e-6, rtol=0)
    assert not torch.equal(view(x), view(x))


def test_without_noise_the_attack_is_the_plain_one(model, batch):
    attack = PGD(threat=Threat(norm="linf", eps=0.05), steps=3, relative_step=0.5, random_start=False)
    through = PGD(
        threat=Threat(norm="linf", eps=0.05), steps=3, relative_step=0.5, random_start=False,
        objective=Through(view=NoisyInput(std=0.0), objective=PLAIN),
    )  # fmt: skip
    assert torch.equal(through(model, *batch), attack(model, *batch))
    assert through.is_random
    assert through.lacks(model, batch[0]) is None


def test_passes_count_and_the_network_stays(model, batch):
    x, y = batch
    counted = Counted(model.train())
    state = {name: value.clone() for name, value in model.state_dict().items()}
    heads = WeightedSum(objectives=[PLAIN, OnAux(key="p_plus", loss=CrossEntropy())], weights=[1, 1])
    attack = PGD(
        threat=Threat(norm="linf", eps=0.05), steps=3, relative_step=0.5, random_start=False, keep="best",
        objective=Through(view=NoisyInput(std=0.1), objective=heads),
    )  # fmt: skip
    found = drawn(attack, counted, x, y)
    assert torch.equal(found, drawn(attack, model, x, y))
    assert not torch.equal(found, attack(model, x, y))
    # one noisy pass a step serves both; of the iterates the network says which is best, without noise
    assert (counted.forwards, counted.backwards) == (2 * 3 * 8, 3 * 8)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_route_may_lie_behind_the_noise(model, batch):
    view = NoisyInput(std=0.1)(model).routed({"block1": Route(part="f")})
    torch.manual_seed(7)
    wanted = model.routed({"block1": Route(part="f")})(batch[0] + 0.1 * torch.randn(8, 3, 8, 8))
    assert torch.equal(drawn(view, batch[0]), wanted)


@pytest.mark.parametrize("std", [-0.1, float("inf"), "a"])
def test_what_is_no_size_is_refused(std):
    with pytest.raises(ValueError, match="expected a"):
        NoisyInput(std=std)

"""Each way in which a network cannot be evaluated has a finding of its own; a sound network has none."""

import random
import re

import numpy as np
import pytest
import torch
from torch import nn

from fsr_lab.core.explain import explanation, explanations
from fsr_lab.core.record import Finding
from fsr_lab.core.threat import Threat
from fsr_lab.evaluation.counting import Counted
from fsr_lab.evaluation.doctor import DEEP, EXAMINATION, REVIEW, examine, left_out

LINF = Threat(norm="linf", eps=16 / 255)


class Apply(nn.Module):
    """A function as a layer."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, z):
        return self.function(z)


class DeclaredNoise(nn.Module):
    eval_noise = True

    def forward(self, z):
        return z + 0.2 * torch.randn_like(z)


class Learns(nn.Module):
    """A BatchNorm that goes on to learn its statistics in eval mode, without using those of the batch."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, z):
        self.mean.lerp_(z.detach().mean(0), 0.1)
        return z


class Backwards(torch.autograd.Function):
    """The identity, whose gradient points the wrong way wherever `is_wrong` says so."""

    @staticmethod
    def forward(ctx, x, is_wrong):
        ctx.save_for_backward(is_wrong(x))
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        (wrong,) = ctx.saved_tensors
        return torch.where(wrong, -gradient, gradient), None


def misled(net, is_wrong):
    return nn.Sequential(Apply(lambda x: Backwards.apply(x, is_wrong)), net).eval()


def images(count):
    """Return images of four patterns under noise, in steps of 1/64, and their labels."""
    draw = torch.Generator().manual_seed(count)
    patterns = 0.5 + 0.1 * torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)).sign()
    y = torch.arange(count) % 4
    x = (patterns[y] + 0.1 * torch.randn(count, 3, 8, 8, generator=draw)).clamp(0, 1)
    return (x * 64).round() / 64, y


def untrained():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4),
    )  # fmt: skip


@pytest.fixture(scope="module")
def state():
    """Return the weights of a network after 25 steps."""
    torch.manual_seed(0)
    net, (x, y) = untrained(), images(256)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(25):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net.state_dict()


@pytest.fixture
def net(state):
    """Return a trained network of this test's own."""
    net = untrained()
    net.load_state_dict(state)
    return net.eval()


@pytest.fixture
def data():
    return images(64)


def then(net, *layers):
    return nn.Sequential(net, *layers).eval()


def not_well(findings):
    """Return {check: verdict} of what is not as it should be."""
    assert all(type(finding) is Finding and finding.verdict in ("pass", "warn", "fail") for finding in findings)
    assert all(np.isfinite(finding.value) and "\n" not in finding.text for finding in findings)
    return {finding.check: finding.verdict for finding in findings if finding.verdict != "pass"}


def value(findings, check):
    (found,) = [finding.value for finding in findings if finding.check == check]
    return found


@pytest.mark.parametrize("threat", [LINF, Threat(norm="l2", eps=0.5), Threat(norm="linf", eps=0)], ids=str)
def test_a_sound_network_passes_every_check(net, data, threat):
    findings = examine(net, *data, threat)
    assert not_well(findings) == {}
    assert [finding.check for finding in findings] == list(EXAMINATION)
    assert left_out(findings) == ()


def test_an_examination_costs_what_it_says(net, data):
    counted = Counted(net).eval()
    assert not_well(examine(counted, *data, LINF)) == {}
    assert 40 * 64 < counted.forwards <= 50 * 64
    assert 30 * 64 < counted.backwards <= 35 * 64


def train_mode(net, x, y):
    return net.train(), x, y


def partly_train_mode(net, x, y):
    net[1].train()
    return net, x, y


def probabilities(net, x, y):
    return then(net, nn.Softmax(dim=1)), x, y


def nan(net, x, y):
    with torch.no_grad():
        net[3].weight[0, 0, 0, 0] = torch.nan
    return net, x, y


def infinite_for_one_image(net, x, y):
    return then(net, Apply(lambda z: z / (torch.arange(len(z))[:, None] != 3))), x, y


def out_of_range(net, x, y):
    return net, 4 * x - 2, y


def stochastic(net, x, y):
    return then(net, Apply(lambda z: z + 0.2 * torch.randn_like(z))), x, y


def stochastic_by_numpy(net, x, y):
    return then(net, Apply(lambda z: z + np.random.randn())), x, y


def declared_noise(net, x, y):
    return then(net, DeclaredNoise()), x, y


def masked(net, x, y):
    return then(net, Apply(lambda z: 9 * torch.sigmoid(100 * z))), x, y


def cut_off(net, x, y):
    return then(net, Apply(lambda z: z.detach())), x, y


def broken_gradient(net, x, y):
    return then(net, Apply(lambda z: z + (z * 0).sqrt())), x, y


def saturated_loss(net, x, y):
    return then(net, Apply(lambda z: 1000 * z)), x, y


def hidden_batch_norm(net, x, y):
    net.train()
    return lambda x: net(x), x, y


def learns_in_eval_mode(net, x, y):
    return then(net, Learns()), x, y


def a_tuple(net, x, y):
    return then(net, Apply(lambda z: (z, z))), x, y


def one_output(net, x, y):
    return then(net, Apply(lambda z: z[:, :1])), x, y


def raises(net, x, y):
    return then(net, Apply(lambda z: z @ z)), x, y


def raises_alone(net, x, y):
    return then(net, nn.Flatten(0), nn.Unflatten(0, (64, 4))), x, y


def other_labels(net, x, y):
    return net, x, y + 1


def labels_of_another_type(net, x, y):
    return net, x, y.float()


ILL = {
    train_mode: ("train-mode", "warn", 7), partly_train_mode: ("train-mode", "warn", 1),
    probabilities: ("logits", "fail", 1), nan: ("finite", "fail", 1),
    infinite_for_one_image: ("finite", "fail", 1 / 64),
    out_of_range: ("images", "fail", None), stochastic: ("deterministic", "fail", None),
    stochastic_by_numpy: ("deterministic", "fail", None), declared_noise: ("deterministic", "warn", None),
    masked: ("gradients", "fail", None), cut_off: ("gradients", "fail", 1), broken_gradient: ("gradients", "fail", 1),
    saturated_loss: ("gradients", "warn", None), hidden_batch_norm: ("batch-independent", "fail", None),
    learns_in_eval_mode: ("buffers", "fail", 1), a_tuple: ("one-tensor", "fail", 2),
    one_output: ("one-tensor", "fail", 2), raises: ("one-tensor", "fail", 1),
    raises_alone: ("batch-independent", "fail", 1), other_labels: ("labels", "fail", 0.25),
    labels_of_another_type: ("labels", "fail", 0),
}  # fmt: skip
"""What is done to a sound network or its images: the one finding that follows, and its number where it is known."""


@pytest.mark.parametrize("ill", ILL, ids=lambda ill: ill.__name__)
def test_each_illness_has_its_own_finding_and_no_other(net, data, ill):
    check, verdict, number = ILL[ill]
    findings = examine(*ill(net, *data), LINF)
    assert not_well(findings) == {check: verdict}
    if number is not None:
        assert value(findings, check) == pytest.approx(number)
    else:
        assert value(findings, check) > 0.05


def test_what_needs_a_failed_check_is_left_out(net, data):
    findings = examine(*probabilities(net, *data), LINF)
    attacking = ("gradients", "falls-with-eps", "falls-with-steps", "noise")
    assert left_out(findings) == attacking
    assert [finding.check for finding in findings] == [check for check in EXAMINATION if check not in attacking]
    ran = {finding.check for finding in examine(*out_of_range(net, *data), LINF)}
    assert ran == {"images", "train-mode"}


def test_a_callable_has_no_mode_and_no_buffers(net, data):
    findings = examine(lambda x: net(x), *data, LINF)
    assert not_well(findings) == {}
    assert {finding.check for finding in findings} == set(EXAMINATION) - {"train-mode", "buffers"}
    assert left_out(findings) == ()


def test_confidently_right_samples_keep_a_gradient_that_float32_can_tell(net, data):
    # p_y rounds to one from a margin of 17 on; the other classes' probabilities are zero from about 104 on
    first, second = net(data[0]).topk(2).values.detach().T
    margins = first - second
    confident, beyond = 100 / margins.max(), 110 / margins.min()
    assert ((confident * margins) > 17).float().mean() > 0.8
    assert not_well(examine(then(net, Apply(lambda z: z * confident)), *data, LINF)) == {}
    assert not_well(examine(then(net, Apply(lambda z: z * beyond)), *data, LINF)) == {"gradients": "warn"}


def test_a_gradient_of_the_wrong_sign_leads_less_far_than_noise(net, data):
    wide = Threat(norm="linf", eps=0.45)
    findings = examine(misled(net, lambda x: torch.ones_like(x, dtype=torch.bool)), *data, wide)
    assert not_well(findings) == {"falls-with-eps": "fail", "noise": "fail"}
    assert value(findings, "falls-with-eps") > 0.9


def test_a_gradient_that_misleads_after_the_first_step_lets_one_step_win(net, data):
    # right at the images themselves, which lie on steps of 1/64, and wrong beside them
    findings = examine(misled(net, lambda x: (x * 64).frac() != 0), *data, Threat(norm="linf", eps=0.1))
    assert not_well(findings)["falls-with-steps"] == "fail"
    assert value(findings, "falls-with-steps") > 0.1
    assert "noise" not in not_well(findings)


def snapshot(model):
    modes = [module.training for module in model.modules()]
    wants = [parameter.requires_grad for parameter in model.parameters()]
    return modes, wants, {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("ill", [partly_train_mode, learns_in_eval_mode, stochastic_by_numpy, raises, masked])
def test_everything_is_put_back(net, data, ill):
    net[3].bias.requires_grad_(False)
    model, x, y = ill(net, *data)
    buffers = dict(model.named_buffers())
    modes, wants, tensors = snapshot(model)
    random_states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    images_before = x.clone()
    examine(model, x, y, LINF)
    assert snapshot(model)[:2] == (modes, wants)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())
    assert all(buffer is buffers[name] for name, buffer in model.named_buffers())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(x, images_before)
    assert torch.equal(torch.get_rng_state(), random_states[0])
    assert random.getstate() == random_states[1]
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), random_states[2], strict=True))


def test_the_same_network_has_the_same_findings_whatever_was_drawn_before(net, data):
    first = examine(net, *data, LINF)
    torch.rand(7)
    assert examine(net, *data, LINF) == first


def test_it_works_without_gradients_in_double_precision_and_on_one_image(net, data):
    with torch.inference_mode():
        x = data[0] * 1
        assert not_well(examine(net, x, data[1] * 1, LINF)) == {}
    assert not_well(examine(net.double(), data[0].double(), data[1], LINF)) == {}
    assert not_well(examine(net.float(), data[0][:1], data[1][:1], LINF)) == {}


def test_without_an_image_there_is_nothing_to_examine(net, data):
    findings = examine(net, data[0][:0], data[1][:0], LINF)
    assert not_well(findings) == {"images": "fail"}


def test_every_check_is_explained_and_nothing_else():
    assert list(explanations()) == [*EXAMINATION, *DEEP, *REVIEW, "classes", "concerns", "verdict"]
    for check, paragraph in explanations().items():
        assert paragraph.startswith("Measured: ")
        assert re.search(r"Why(:|\s+and\s+what\s+to\s+do:)", paragraph)
        assert re.search(r"(To|to)\s+do:", paragraph)
        assert explanation(check) == paragraph
    with pytest.raises(ValueError, match=r"no check named 'gradient'; close names: \['gradients'"):
        explanation("gradient")

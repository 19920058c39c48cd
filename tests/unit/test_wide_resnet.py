import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from fsr_lab.defense.fsr import FSR
from fsr_lab.model.defended import attach
from fsr_lab.model.points import inspect_points
from fsr_lab.model.wide_resnet import WideResNet


def narrow(**options):
    return WideResNet(depth=10, widen_factor=1, **options)


def test_groups_halve_the_side_and_double_the_channels():
    with torch.device("meta"):
        shapes = inspect_points(WideResNet(), ["conv1", "block1", "block2", "block3", "relu", "avgpool"], (3, 32, 32))
    assert list(shapes.values()) == [(16, 32, 32), (160, 32, 32), (320, 16, 16), (640, 8, 8), (640, 8, 8), (640, 1, 1)]


@pytest.mark.parametrize(("depth", "blocks"), [(10, 1), (28, 4), (34, 5)])
def test_depth_is_six_per_block_and_four(depth, blocks):
    with torch.device("meta"):
        net = WideResNet(depth=depth)
    assert [len(net.block1), len(net.block2), len(net.block3)] == [blocks] * 3
    # two convolutions per block, the stem, and a shortcut per group
    assert sum(isinstance(module, nn.Conv2d) for module in net.modules()) == 6 * blocks + 1 + 3


def test_there_is_no_second_copy_of_the_first_group():
    net = narrow()
    net(torch.rand(2, 3, 8, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize("side", [8, 32, 64, 50])
def test_pooling_is_global_at_every_size(side):
    assert narrow(num_classes=7).eval()(torch.rand(2, 3, side, side)).shape == (2, 7)


def test_a_block_activates_before_it_convolves():
    net = narrow().double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
    block, x = net.block2[0], torch.randn(2, 16, 8, 8, dtype=torch.float64)

    def norm(layer, features):
        scale = layer.weight / (layer.running_var + layer.eps).sqrt()
        return (features - layer.running_mean.view(1, -1, 1, 1)) * scale.view(1, -1, 1, 1) + layer.bias.view(
            1, -1, 1, 1
        )

    activated = norm(block.bn1, x).clamp_min(0)
    hidden = functional.conv2d(activated, block.conv1.weight, stride=2, padding=1)
    residual = functional.conv2d(norm(block.bn2, hidden).clamp_min(0), block.conv2.weight, padding=1)
    # the shape changes: the shortcut is a convolution of the activated input
    wanted = functional.conv2d(activated, block.shortcut.weight, stride=2) + residual
    torch.testing.assert_close(block(x), wanted)


def test_a_block_that_keeps_the_shape_adds_its_bare_input():
    block = WideResNet(depth=16, widen_factor=1).eval().block1[1]
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 16, 5, 5)  # negative entries pass, too
    assert torch.equal(block(x), x)


def test_the_literal_site_is_a_point_with_signed_features():
    net = narrow()
    model = attach(net, {"block3": FSR}, (3, 32, 32), 10).eval()
    out = model.forward_with_aux(torch.rand(2, 3, 32, 32))
    assert out.aux["block3"]["f_tilde"].shape == (2, 64, 8, 8)
    parts = out.aux["block3"]
    assert (parts["f_plus"] + parts["f_minus"]).min() < 0
    activated = attach(narrow(), {"relu": FSR}, (3, 32, 32), 10).eval().forward_with_aux(torch.rand(2, 3, 32, 32))
    assert (activated.aux["relu"]["f_plus"] + activated.aux["relu"]["f_minus"]).min() >= 0


def test_initialisation_is_the_released_one():
    net = WideResNet(depth=10)
    for conv, out, kernel in ((net.block3[0].conv2, 640, 3), (net.block3[0].shortcut, 640, 1)):
        assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (kernel * kernel * out)), rel=1e-2)
    assert not net.fc.bias.any()
    # the weights of linear layers stay torch's: uniform within 1 / sqrt(640)
    assert net.fc.weight.abs().max().item() == pytest.approx(1 / math.sqrt(640), rel=1e-2)
    (defense,) = attach(net, {"relu": FSR}, (3, 32, 32), 10).defenses.values()
    assert defense.separation[-1].weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 640)), rel=1e-2)
    assert not defense.aux_head.bias.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 30}, r"expected a depth of 6n \+ 4, such as 28 or 34, got 30"),
        ({"depth": 4}, "got 4"),
        ({"widen_factor": 0}, "expected widen_factor of at least 1, got 0"),
    ],
)
def test_what_makes_no_network_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        WideResNet(**options)

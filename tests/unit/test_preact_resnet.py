import torch
from torch import nn

from fsr_lab.model.points import inspect_points
from fsr_lab.model.preact_resnet import preact_resnet18


def test_parameters_counted_layer_by_layer():
    def block(c_in, c):
        return 2 * c_in + 9 * c_in * c + 2 * c + 9 * c * c + (c_in * c if c_in != c else 0)

    groups = sum(block(c_in, c) + block(c, c) for c_in, c in ((64, 64), (64, 128), (128, 256), (256, 512)))
    wanted = 27 * 64 + groups + 2 * 512 + 513 * 10
    assert wanted == 11_172_170
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in preact_resnet18().parameters()) == wanted


def test_groups_are_signed_sums_and_the_last_relu_is_not():
    net = preact_resnet18(width=4).eval()
    seen = {}
    for name in ("layer1", "layer4", "relu"):
        net.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: seen.update({name: out.min()}))
    net(torch.rand(2, 3, 16, 16))
    assert seen["layer1"] < 0
    assert seen["layer4"] < 0
    assert seen["relu"] >= 0


def test_the_stem_is_bare():
    net = preact_resnet18(width=4)
    assert [name for name, _ in net.named_children()][:2] == ["conv1", "layer1"]
    assert net.conv1.bias is None


def test_a_successors_pre_activation_feeds_both_its_branches():
    # what makes it the place of the group's activated output: zeroing it leaves nothing of the group
    net = preact_resnet18(width=4).eval()
    net.layer2[0].relu1.register_forward_hook(lambda _, __, out: torch.zeros_like(out))
    ones, zeros = net(torch.ones(1, 3, 16, 16)), net(torch.zeros(1, 3, 16, 16))
    assert torch.equal(ones, zeros)


def test_shapes():
    shapes = inspect_points(preact_resnet18(width=4), ["layer1", "layer2", "layer3", "layer4", "relu"], (3, 64, 64))
    assert list(shapes.values()) == [(4, 64, 64), (8, 32, 32), (16, 16, 16), (32, 8, 8), (32, 8, 8)]
    assert isinstance(preact_resnet18(width=4).layer2[0].shortcut, nn.Conv2d)
    assert preact_resnet18(width=4).layer1[0].shortcut is None

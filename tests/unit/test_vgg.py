import math

import pytest
import torch
from torch import nn

from fsr_lab.core.defense import FeatureDefense
from fsr_lab.core.types import DefenseOutput
from fsr_lab.defense.fsr import FSR
from fsr_lab.model.defended import attach
from fsr_lab.model.points import inspect_points
from fsr_lab.model.vgg import vgg16


def test_thirteen_convolutions_with_biases_and_five_pools():
    with torch.device("meta"):
        net = vgg16()
    widths = [module.out_channels for module in net.modules() if isinstance(module, nn.Conv2d)]
    assert widths == [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    assert all(module.bias is not None for module in net.modules() if isinstance(module, nn.Conv2d))
    shapes = inspect_points(net, [f"pool{n}" for n in range(1, 6)], (3, 32, 32))
    assert [shape.height for shape in shapes.values()] == [16, 8, 4, 2, 1]


def test_each_convolution_is_followed_by_its_norm_and_relu():
    net = vgg16(width=2).eval()
    x = torch.rand(2, 3, 32, 32)
    block, wanted = net.block1, x
    for conv, norm in ((block.conv1, block.bn1), (block.conv2, block.bn2)):
        wanted = norm(conv(wanted)).clamp_min(0)
    torch.testing.assert_close(block(x), wanted)


def test_the_papers_two_readings_of_its_site():
    net = vgg16(width=4)
    found = inspect_points(net, ["block4", "pool4"], (3, 32, 32))
    assert found == {"block4": (32, 4, 4), "pool4": (32, 2, 2)}
    assert attach(net, {"pool4": FSR}, (3, 32, 32), 10).eval()(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_images_below_the_smallest_are_named():
    with pytest.raises(ValueError, match=r"VGG does not take images of shape \(3, 16, 16\)"):
        inspect_points(vgg16(width=2), ["block4"], (3, 16, 16))


class OneConv(FeatureDefense):
    """A defence that says whether it is initialised as its network is."""

    def __init__(self, shape, num_classes, *, follows):
        super().__init__()
        self.follows_backbone_init = follows
        self.conv = nn.Conv2d(shape.channels, 256, 3, padding=1)
        self.head = nn.Linear(shape.channels, num_classes)

    def forward(self, features, targets=None, *, route=None, want_aux=True):
        return DefenseOutput(features, {})


def test_initialisation_is_the_released_one():
    net = vgg16()
    conv = net.block4.conv2  # 512 x 512 x 3 x 3: its deviation is known to a thousandth
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 512)), rel=5e-3)
    assert net.classifier[0].weight.std().item() == pytest.approx(0.01, rel=1e-2)
    biases = [module.bias for module in net.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert all(not bias.any() for bias in biases)


@pytest.mark.parametrize("follows", [True, False])
def test_defences_follow_where_they_say_so(follows):
    def build(shape, num_classes):
        return OneConv(shape, num_classes, follows=follows)

    (defense,) = attach(vgg16(width=32), {"block4": build}, (3, 32, 32), 10).defenses.values()
    assert bool(defense.conv.bias.any()) != follows
    followed = defense.conv.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 256)), rel=2e-2)
    assert followed == follows
    assert (defense.head.weight.abs().max() < 0.06) == follows


def test_fsr_is_initialised_as_its_network():
    (defense,) = attach(vgg16(), {"block4": FSR}, (3, 32, 32), 10).defenses.values()
    first, last = defense.separation[0].weight, defense.recalibration[-1].weight
    assert first.std().item() == pytest.approx(math.sqrt(2 / (9 * 64)), rel=1e-2)
    assert last.std().item() == pytest.approx(math.sqrt(2 / (9 * 512)), rel=1e-2)
    assert defense.aux_head.weight.std().item() == pytest.approx(0.01, rel=5e-2)
    assert not defense.aux_head.bias.any()

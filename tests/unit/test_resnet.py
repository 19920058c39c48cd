import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fsr_lab.defense.fsr import FSR
from fsr_lab.model.defended import attach
from fsr_lab.model.points import inspect_points
from fsr_lab.model.resnet import resnet18, resnet50
from fsr_lab.model.tiny_cnn import TinyCNN


def on_meta(build, **options):
    with torch.device("meta"):
        return build(**options)


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def macs(call, *inputs):
    """Return multiply-adds of all convolutions and linear layers, in thousands of millions."""
    with FlopCounterMode(display=False) as counter:
        call(*inputs)
    return counter.get_total_flops() / 2e9


@pytest.mark.parametrize(("classes", "wanted"), [(10, 11_173_962), (100, 11_220_132), (200, 11_271_432)])
def test_parameters_are_those_of_the_released_network(classes, wanted):
    assert count(on_meta(resnet18, num_classes=classes)) == wanted


@pytest.mark.parametrize(("classes", "fsr"), [(10, 1_259_018), (100, 1_305_188), (200, 1_356_488)])
def test_parameters_with_fsr_are_the_papers(classes, fsr):
    backbone = on_meta(resnet18, num_classes=classes)
    plain = count(backbone)
    with torch.device("meta"):
        model = attach(backbone, {"layer4": FSR}, (3, 32, 32), classes)
    assert count(model) == plain + fsr
    if classes == 10:
        assert round(plain / 1e6, 2) == 11.17
        assert round(count(model) / 1e6, 2) == 12.43


@pytest.mark.parametrize(("side", "classes", "plain", "with_fsr"), [(32, 10, 0.555423, 0.575492)])
def test_multiplications_are_those_of_the_method(side, classes, plain, with_fsr):
    x = torch.empty(1, 3, side, side, device="meta")
    backbone = on_meta(resnet18, num_classes=classes).eval()
    assert macs(backbone, x) == pytest.approx(plain, abs=5e-7)
    with torch.device("meta"):
        model = attach(backbone, {"layer4": FSR}, (3, side, side), classes).eval()
    assert macs(model.forward_with_aux, x) == pytest.approx(with_fsr, abs=5e-7)
    # deployed, the three auxiliary heads do not run: 3 x 512 x 10 multiplications
    assert macs(model, x) == pytest.approx(with_fsr - 15_360e-9, abs=5e-7)


def test_groups_halve_the_side_and_double_the_channels():
    points = ["relu", "layer1", "layer2", "layer3", "layer4", "avgpool"]
    shapes = list(inspect_points(on_meta(resnet18), points, (3, 32, 32)).values())
    assert shapes == [(64, 32, 32), (64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 1, 1)]
    tiny = inspect_points(on_meta(resnet18), points, (3, 64, 64))
    assert tiny["layer4"] == (512, 8, 8)


def test_shortcuts_are_convolutions_only_where_the_shape_changes():
    net = on_meta(resnet18)
    blocks = {name: len(block.shortcut) for name, block in net.named_modules() if hasattr(block, "shortcut")}
    changes = {"layer2.0", "layer3.0", "layer4.0"}
    assert blocks == {f"layer{n}.{i}": 2 * (f"layer{n}.{i}" in changes) for n in (1, 2, 3, 4) for i in (0, 1)}


def test_a_block_is_residual():
    net = resnet18(width=4).eval()
    block = net.layer1[1]
    torch.nn.init.zeros_(block.bn2.weight)
    features = torch.rand(2, 4, 5, 5)  # not negative, as what a ReLU gives
    assert torch.equal(block(features), features)
    torch.nn.init.constant_(block.bn2.bias, -0.5)
    torch.testing.assert_close(block(features), (features - 0.5).clamp_min(0))


def test_a_bottleneck_is_residual_and_strides_in_its_middle():
    net = resnet50(width=2).eval()
    strides = [conv.stride for conv in (net.layer2[0].conv1, net.layer2[0].conv2, net.layer2[0].conv3)]
    assert strides == [(1, 1), (2, 2), (1, 1)]
    block = net.layer1[1]
    features = torch.rand(2, 8, 5, 5)
    hidden = block.bn1(block.conv1(features)).clamp_min(0)
    hidden = block.bn2(block.conv2(hidden)).clamp_min(0)
    torch.testing.assert_close(block(features), (block.bn3(block.conv3(hidden)) + features).clamp_min(0))
    torch.nn.init.zeros_(block.bn3.weight)
    assert torch.equal(block(features), features)
    assert len(block.shortcut) == 0
    # four times as many channels leave the first block: its shortcut is a convolution although the side is kept
    assert net.layer1[0].shortcut[0].out_channels == 8


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 16), (3, 17), (4, 40)])
def test_it_takes_images_of_any_size(channels, side):
    net = resnet18(width=2, in_channels=channels, num_classes=7).eval()
    assert net(torch.rand(2, channels, side, side)).shape == (2, 7)


def test_the_tiny_network_has_batch_norm_only_where_asked():
    def norms(net):
        return [name for name, module in net.named_modules() if isinstance(module, torch.nn.BatchNorm2d)]

    assert norms(TinyCNN()) == []
    assert norms(TinyCNN(batch_norm=True)) == ["block1.norm", "block2.norm"]
    assert count(TinyCNN(width=8)) == (27 + 1) * 8 + (72 + 1) * 16 + (16 + 1) * 10

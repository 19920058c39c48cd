"""Parameters and multiplications of the paper's networks, with and without FSR, at both image sizes."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fsr_lab.defense.fsr import FSR
from fsr_lab.model.defended import attach
from fsr_lab.model.preact_resnet import preact_resnet18
from fsr_lab.model.resnet import resnet18, resnet50
from fsr_lab.model.vgg import vgg16
from fsr_lab.model.wide_resnet import WideResNet

TAPS = {resnet18: "layer4", vgg16: "block4", WideResNet: "relu", preact_resnet18: "relu", resnet50: "layer4"}


@pytest.fixture(autouse=True)
def _on_meta():
    with torch.device("meta"):
        yield


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def macs(call, x):
    """Return multiply-adds of all convolutions and linear layers, in thousands of millions."""
    with FlopCounterMode(display=False) as counter:
        call(x)
    return counter.get_total_flops() / 2e9


@pytest.mark.parametrize(
    ("build", "classes", "wanted"),
    [
        (vgg16, 10, 15_253_578),
        (vgg16, 200, 15_253_578 + 190 * 513),
        (WideResNet, 10, 46_160_474),
        (WideResNet, 100, 46_160_474 + 90 * 641),
        (resnet50, 10, 23_520_842),
        (preact_resnet18, 10, 11_172_170),
    ],
)
def test_parameters_of_the_bare_network(build, classes, wanted):
    assert count(build(num_classes=classes)) == wanted


@pytest.mark.parametrize(
    ("build", "classes", "added"),
    [
        (vgg16, 10, 1_259_018),
        (vgg16, 100, 1_305_188),
        (vgg16, 200, 1_356_488),
        (WideResNet, 10, 1_555_210),
        (WideResNet, 100, 1_612_900),
        (WideResNet, 200, 1_677_000),
        (preact_resnet18, 10, 1_259_018),
        # two nets of 9Cw + 2w + 9ww + 2w + 9wC and a head, for C = 2048 and w = 64
        (resnet50, 10, 2 * (2 * 9 * 2048 * 64 + 4 * 64 + 9 * 64 * 64) + 2049 * 10),
    ],
)
def test_parameters_that_fsr_adds(build, classes, added):
    backbone = build(num_classes=classes)
    plain = count(backbone)
    assert count(attach(backbone, {TAPS[build]: FSR}, (3, 32, 32), classes)) == plain + added


def test_the_papers_table_of_vgg():
    # the paper prints 16.52 with FSR; its own modules give this
    model = attach(vgg16(), {"block4": FSR}, (3, 32, 32), 10)
    assert [round(number / 1e6, 2) for number in (count(model.backbone), count(model))] == [15.25, 16.51]


@pytest.mark.parametrize(
    ("build", "side", "classes", "plain", "digits"),
    [
        (resnet18, 64, 200, 2.2218, 4),
        (vgg16, 32, 10, 0.313726, 6),
        (vgg16, 64, 200, 1.2534, 4),
        (WideResNet, 32, 10, 6.6589, 4),
        (WideResNet, 64, 10, 26.636, 3),
    ],
)
def test_multiplications_are_those_of_the_method(build, side, classes, plain, digits):
    net = build(num_classes=classes).eval()
    assert macs(net, torch.empty(1, 3, side, side)) == pytest.approx(plain, abs=0.5 * 10**-digits)


@pytest.mark.parametrize(
    ("build", "side", "classes", "with_fsr"),
    [
        (vgg16, 32, 10, 0.333795),
        (resnet18, 64, 200, 2.3023),
        (vgg16, 64, 200, 1.3339),
        (WideResNet, 32, 10, None),
        (WideResNet, 64, 10, None),
    ],
)
def test_multiplications_that_fsr_adds(build, side, classes, with_fsr):
    x = torch.empty(1, 3, side, side)
    backbone = build(num_classes=classes).eval()
    plain = macs(backbone, x)
    model = attach(backbone, {TAPS[build]: FSR}, (3, side, side), classes).eval()
    channels, places = (640, (side // 4) ** 2) if build is WideResNet else (512, (side // 8) ** 2)
    nets = 2 * (9 * channels * 64 + 9 * 64 * 64 + 9 * 64 * channels) * places
    total = macs(model.forward_with_aux, x)
    assert total == pytest.approx(plain + (nets + 3 * channels * classes) / 1e9, abs=1e-9)
    if with_fsr is not None:
        assert total == pytest.approx(with_fsr, abs=5e-5)


def test_multiplications_of_the_other_networks():
    x = torch.empty(1, 3, 32, 32)
    # the same convolutions as ResNet-18's, in another order with the rest
    assert macs(preact_resnet18().eval(), x) == pytest.approx(0.555423, abs=5e-7)

    def group(c_in, c, count, side, side_in):
        first = c_in * c * side_in**2 + (9 * c * c + 4 * c * c + 4 * c_in * c) * side**2
        return first + (count - 1) * 17 * c * c * side**2

    wanted = 27 * 64 * 32**2 + group(64, 64, 3, 32, 32) + group(256, 128, 4, 16, 32)
    wanted += group(512, 256, 6, 8, 16) + group(1024, 512, 3, 4, 8) + 20480
    assert macs(resnet50().eval(), x) == pytest.approx(wanted / 1e9, abs=1e-9)


@pytest.mark.parametrize(
    ("build", "side", "shape"),
    [
        (resnet18, 64, (512, 8, 8)),
        (vgg16, 32, (512, 4, 4)),
        (vgg16, 64, (512, 8, 8)),
        (WideResNet, 32, (640, 8, 8)),
        (WideResNet, 64, (640, 16, 16)),
        (preact_resnet18, 32, (512, 4, 4)),
        (preact_resnet18, 64, (512, 8, 8)),
        (resnet50, 32, (2048, 4, 4)),
        (resnet50, 64, (2048, 8, 8)),
    ],
)
def test_the_defended_feature_has_the_size_of_the_method(build, side, shape):
    model = attach(build(), {TAPS[build]: FSR}, (3, side, side), 10).eval()
    out = model.forward_with_aux(torch.empty(2, 3, side, side))
    assert out.logits.shape == (2, 10)
    assert out.aux[TAPS[build]]["f_tilde"].shape == (2, *shape)

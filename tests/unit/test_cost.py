"""Parameters, MACs and the paper's FLOPs against hand counts and against METHOD's golden values."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from fsr_lab.core.defense import FeatureDefense
from fsr_lab.core.types import DefenseOutput
from fsr_lab.defense.fsr import FSR
from fsr_lab.evaluation.cost import measure
from fsr_lab.model.defended import DefendedModel, attach
from fsr_lab.model.resnet import resnet18

SMALL, LARGE = (3, 32, 32), (3, 64, 64)
RESNET18 = ("ReLU", "AdaptiveAvgPool2d")
"""What the released ResNet-18 calls as functions."""


class VGG16(nn.Module):
    """The released VGG16, layer by layer: convolutions with bias, a head of three linear layers (METHOD §2.2)."""

    def __init__(self, *, num_classes):
        super().__init__()
        channels = 3
        for index, (width, depth) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)], start=1):
            block = nn.Sequential()
            for _ in range(depth):
                block += nn.Sequential(
                    nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
                )
                channels = width
            self.add_module(f"block{index}", block)
            self.add_module(f"pool{index}", nn.MaxPool2d(2))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(
            nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, num_classes)
        )

    def forward(self, x):
        for index in range(1, 6):
            x = getattr(self, f"pool{index}")(getattr(self, f"block{index}")(x))
        return self.head(self.avgpool(x).flatten(1))


class ThreeLayers(nn.Module):
    """Two convolutions and a linear layer, between them one of everything that the convention counts."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(4, 2, 1, bias=False)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2, 3)

    def forward(self, x):
        return self.fc(self.avgpool(self.conv2(self.pool(self.relu(self.norm(self.conv1(x)))))).flatten(1))


class Headed(FeatureDefense):
    """Scales features by a 1x1 convolution and runs one head `runs` times where its outputs are wanted."""

    def __init__(self, shape, num_classes, *, runs=1):
        super().__init__()
        self.scale = nn.Conv2d(shape.channels, shape.channels, 1, bias=False)
        self.head = nn.Linear(shape.channels, num_classes)
        self.runs = runs

    def forward(self, features, targets=None, *, route=None, want_aux=True):
        scaled = self.scale(features)
        heads = {str(run): self.head(scaled.mean((2, 3))) for run in range(self.runs if want_aux else 0)}
        return DefenseOutput(scaled, heads)


def cost_of(backbone, defenses, image_shape, num_classes, seen_as_functions=()):
    with torch.device("meta"):
        model = attach(backbone(num_classes=num_classes), defenses, image_shape, num_classes)
    return measure(model, image_shape, functional=seen_as_functions)


@pytest.mark.parametrize(
    ("backbone", "point", "unseen", "printed", "counted"),
    [
        (resnet18, "layer4", RESNET18, ("1.1133", "1.1535"), ("1.11330", "1.15347")),
        (VGG16, "block4", (), ("0.6299", "0.6701"), ("0.62992", "0.67008")),
    ],
)
def test_the_flops_of_table_7(backbone, point, unseen, printed, counted):
    for defenses, four, five in zip(({}, {point: FSR}), printed, counted, strict=True):
        flops = cost_of(backbone, defenses, SMALL, 10, unseen).flops / 1e9
        assert (f"{flops:.4f}", f"{flops:.5f}") == (four, five)


@pytest.mark.parametrize(
    ("backbone", "point", "vanilla", "defended"),
    [(resnet18, "layer4", 11_173_962, 12_432_980), (VGG16, "block4", 15_253_578, 16_512_596)],
)
def test_parameters(backbone, point, vanilla, defended):
    plain, with_fsr = (cost_of(backbone, defenses, SMALL, 10) for defenses in ({}, {point: FSR}))
    assert (plain.parameters, plain.defense_parameters) == (vanilla, 0)
    assert (with_fsr.parameters, with_fsr.defense_parameters) == (defended, 1_259_018)
    more = [cost_of(backbone, {point: FSR}, SMALL, classes).defense_parameters for classes in (100, 200)]
    assert more == [1_305_188, 1_356_488]


@pytest.mark.parametrize(("last", "flops"), [("conv", "1.15347"), ("conv_bn_relu", "1.15352")])
def test_the_literal_recalibration_net_costs_its_norm_and_activation(last, flops):
    cost = cost_of(resnet18, {"layer4": partial(FSR, rec_last=last)}, SMALL, 10, RESNET18)
    assert f"{cost.flops / 1e9:.5f}" == flops


@pytest.mark.parametrize(
    ("backbone", "point", "image", "classes", "digits", "vanilla", "defended"),
    [
        (resnet18, "layer4", SMALL, 10, 6, "0.555423", "0.575492"),
        (VGG16, "block4", SMALL, 10, 6, "0.313726", "0.333795"),
        (resnet18, "layer4", LARGE, 200, 4, "2.2218", "2.3023"),
        (VGG16, "block4", LARGE, 200, 4, "1.2534", "1.3339"),
    ],
)
def test_plain_macs(backbone, point, image, classes, digits, vanilla, defended):
    plain = cost_of(backbone, {}, image, classes)
    with_fsr = cost_of(backbone, {point: FSR}, image, classes)
    assert f"{plain.macs / 1e9:.{digits}f}" == vanilla
    assert plain.macs_with_aux == plain.macs
    assert f"{with_fsr.macs_with_aux / 1e9:.{digits}f}" == defended
    # the head runs thrice, and not where the network is deployed
    assert with_fsr.macs_with_aux - with_fsr.macs == 3 * 512 * classes


def test_macs_of_the_module_by_its_formula():
    plain, with_fsr = (cost_of(resnet18, defenses, SMALL, 10) for defenses in ({}, {"layer4": FSR}))
    assert with_fsr.macs - plain.macs == 2 * 4 * 4 * (9 * 512 * 64 + 9 * 64 * 64 + 9 * 64 * 512)


def test_three_layers_counted_by_hand():
    cost = measure(DefendedModel(ThreeLayers(), {}), (3, 8, 8))
    conv1, bias, norm, relu, pool = 27 * 4 * 64, 4 * 64, 2 * 4 * 64, 4 * 64, 4 * 64
    conv2, avgpool, linear = 4 * 2 * 16, 2 * 16, 2 * 3 + 3
    assert cost.flops == 2 * (conv1 + bias + norm + relu + pool + conv2 + avgpool + linear) == 16_722
    assert cost.macs == cost.macs_with_aux == conv1 + conv2 + 2 * 3 == 7_046
    assert cost.parameters == (108 + 4) + (4 + 4) + 8 + (6 + 3)
    assert cost.defense_parameters == 0


@pytest.mark.parametrize(
    ("module", "operations"),
    [
        (nn.Conv2d(3, 4, 3, padding=1, bias=False), 27 * 4 * 64),
        (nn.Conv2d(3, 4, 3, padding=1), 27 * 4 * 64 + 4 * 64),
        (nn.Conv2d(3, 4, 3, stride=2, bias=False), 27 * 4 * 9),
        (nn.Conv2d(3, 6, 3, padding=1, groups=3, bias=False), 9 * 6 * 64),
        (nn.BatchNorm2d(3), 2 * 192),
        (nn.ReLU(), 192),
        (nn.ReLU(inplace=True), 192),
        (nn.MaxPool2d(2), 192),
        (nn.AvgPool2d(4), 192),
        (nn.AdaptiveAvgPool2d(1), 192),
        (nn.Linear(8, 5, bias=False), 8 * 5 * 24),
        (nn.Linear(8, 5), 8 * 5 * 24 + 5 * 24),
        (nn.Flatten(), 0),
        (nn.Dropout(), 0),
        (nn.Identity(), 0),
        (nn.Sequential(nn.ReLU(), nn.ReLU()), 2 * 192),
    ],
    ids=str,
)
def test_each_term_of_the_convention_alone(module, operations):
    assert measure(DefendedModel(module, {}), (3, 8, 8)).flops == 2 * operations


def test_a_functional_relu_is_not_seen():
    class Functional(ThreeLayers):
        def forward(self, x):
            x = functional.max_pool2d(functional.relu(self.norm(self.conv1(x))), 2)
            return self.fc(functional.adaptive_avg_pool2d(self.conv2(x), 1).flatten(1))

    functions = measure(DefendedModel(Functional(), {}), (3, 8, 8))
    modules = DefendedModel(ThreeLayers(), {})
    assert functions.flops == 16_722 - 2 * (256 + 256 + 32)
    assert functions.macs == 7_046
    # modules that are declared to be functions elsewhere count as such
    declared = measure(modules, (3, 8, 8), functional=("ReLU", "MaxPool2d", "AdaptiveAvgPool2d"))
    assert declared == functions
    assert measure(modules, (3, 8, 8), functional=("ReLU",)).flops == 16_722 - 2 * 256


def test_what_is_declared_of_the_backbone_leaves_the_defence_alone():
    plain, with_fsr = (cost_of(resnet18, defenses, SMALL, 10, RESNET18) for defenses in ({}, {"layer4": FSR}))
    conv_bn_relu = 9 * 512 * 64 * 16 + 9 * 64 * 64 * 16 + 9 * 64 * 512 * 16 + 2 * (2 + 1) * 64 * 16
    assert with_fsr.flops - plain.flops == 2 * (2 * conv_bn_relu + 3 * (5120 + 10))


def test_an_undeclared_class_is_refused():
    with pytest.raises(ValueError, match=r"no module class named 'Relu'; close names: \['ReLU'"):
        measure(DefendedModel(ThreeLayers(), {}), (3, 8, 8), functional=("Relu",))


@pytest.mark.parametrize("runs", [0, 1, 3])
def test_a_head_costs_as_often_as_it_runs(runs):
    model = attach(ThreeLayers(), {"conv2": partial(Headed, runs=runs)}, (3, 8, 8), 3)
    cost = measure(model, (3, 8, 8))
    assert cost.defense_parameters == 2 * 2 + (2 * 3 + 3)
    assert cost.flops == 16_722 + 2 * (2 * 2 * 16 + runs * (2 * 3 + 3))
    assert cost.macs == 7_046 + 2 * 2 * 16
    assert cost.macs_with_aux == cost.macs + runs * 2 * 3


def test_a_module_that_a_defence_replaces_does_not_run():
    model = attach(ThreeLayers(), {"relu:instead": Headed}, (3, 8, 8), 3)
    cost = measure(model, (3, 8, 8))
    assert cost.flops == 16_722 + 2 * (4 * 4 * 64 + 4 * 3 + 3 - 256)


def test_two_sites_cost_twice():
    one, other, both = (
        cost_of(resnet18, dict.fromkeys(points, FSR), SMALL, 10)
        for points in (["layer3"], ["layer4"], ["layer3", "layer4"])
    )
    plain = cost_of(resnet18, {}, SMALL, 10)
    for name in plain._fields:
        values = [getattr(cost, name) for cost in (one, other, both, plain)]
        assert values[2] - values[3] == (values[0] - values[3]) + (values[1] - values[3]), name


def test_the_measured_model_is_left_as_it_was():
    model = attach(resnet18(width=4), {"layer4": partial(FSR, width=4)})
    model.backbone.bn1.eval()
    before = copy.deepcopy(model.state_dict())
    modes = {name: module.training for name, module in model.named_modules()}
    hooks = {name: len(module._forward_hooks) for name, module in model.named_modules()}
    generator = torch.get_rng_state()
    first = measure(model, SMALL)
    assert measure(model, SMALL) == first
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {name: len(module._forward_hooks) for name, module in model.named_modules()} == hooks
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(value.device.type == "cpu" for value in model.state_dict().values())
    assert torch.equal(torch.get_rng_state(), generator)


def test_images_of_another_size_cost_more_and_the_parameters_stay():
    small, large = (cost_of(resnet18, {"layer4": FSR}, image, 10, RESNET18) for image in (SMALL, LARGE))
    assert large.parameters == small.parameters
    heads_and_fc = 512 * 10
    assert large.macs - heads_and_fc == 4 * (small.macs - heads_and_fc)

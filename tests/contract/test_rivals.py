"""Where the paper's rivals sit in its network, and what they add to it: the figures of the method's specification."""

import pytest
import torch
from torch import nn

from fsr_lab.engine.build import build_model


@pytest.fixture
def build(compose_config):
    """Return the function that builds ResNet-18 for CIFAR-10 with a defence: (name, *overrides)."""
    return lambda name, *overrides: build_model(compose_config("dataset=cifar10", f"defense={name}", *overrides))


def added(model):
    """Return the number of the defences' parameters."""
    return sum(parameter.numel() for parameter in model.taps.parameters())


@pytest.mark.parametrize(("name", "wanted"), [("fd", 698_240), ("fd_dot", 350_080)])
def test_feature_denoising_follows_each_group(name, wanted, build):
    model = build(name)
    assert list(model.defenses) == ["layer1", "layer2", "layer3", "layer4"]
    assert added(model) == wanted
    assert sum(parameter.numel() for parameter in model.backbone.parameters()) == 11_173_962


def test_cas_follows_both_blocks_of_the_last_group(build):
    model = build("cas")
    assert list(model.defenses) == ["layer4.0", "layer4.1"]
    assert added(model) == 2 * (512 * 10 + 10)
    assert {defense.beta for defense in model.defenses.values()} == {2.0}


def test_cifs_has_a_hidden_layer_at_its_first_point_alone(build):
    model = build("cifs")
    assert list(model.defenses) == ["layer4.0", "layer4.1"]
    first, second = model.defenses.values()
    assert (first.inner.weight.shape, first.outer.weight.shape) == ((128, 512), (10, 128))
    assert second.inner is None
    assert added(model) == (512 * 128 + 128 + 128 * 10 + 10) + (512 * 10 + 10)
    assert {defense.beta for defense in model.defenses.values()} == {2.0}


@pytest.mark.parametrize(("name", "over"), [("kwta", "space"), ("kwta_volume", "volume")])
def test_kwta_stands_in_the_place_of_every_activation(name, over, build):
    model = build(name, "model.width=8")
    assert len(model.defenses) == 17
    assert {defense.over for defense in model.defenses.values()} == {over}
    assert all(point.endswith(":instead") for point in model.defenses)
    shares = []
    for module in model.backbone.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda module, inputs, output: shares.append((output != 0).float().mean()))
    model.eval()(torch.rand(2, 3, 32, 32))
    # a ReLU would pass about half; three of sixteen is the smallest group's share
    assert [share.item() for share in shares] == pytest.approx([0.2] * 17, abs=0.013)
    assert added(model) == 0


def test_sap_follows_every_convolution_of_the_main_path(build):
    model = build("sap", "model.width=8")
    convs = [name for name, module in model.backbone.named_modules() if isinstance(module, nn.Conv2d)]
    assert list(model.defenses) == [name for name in convs if "shortcut" not in name]
    assert len(model.defenses) == 17
    assert added(model) == 0

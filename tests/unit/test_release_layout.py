"""Weights under the names that other people's releases give them, restated here layer by layer."""

import os

import pytest
import torch
from torch import nn

from fsr_lab.defense.fsr import FSR
from fsr_lab.engine.checkpoints import load_weights
from fsr_lab.model.defended import attach
from fsr_lab.model.normalize import Normalize
from fsr_lab.model.preact_resnet import preact_resnet18
from fsr_lab.model.resnet import resnet18, resnet50
from fsr_lab.model.vgg import vgg16
from fsr_lab.model.wide_resnet import WideResNet

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def resnet_layers(blocks, convs):
    """Return {released layer: ours}: `linear` is the head, the rest coincides."""
    layers = {"conv1": "conv1", "bn1": "bn1", "linear": "fc"}
    for group, count in enumerate(blocks, 1):
        for index in range(count):
            at = f"layer{group}.{index}"
            layers |= {f"{at}.{kind}{n}": f"{at}.{kind}{n}" for n in range(1, convs + 1) for kind in ("conv", "bn")}
            if index == 0 and (group > 1 or convs == 3):
                layers |= {f"{at}.shortcut.{n}": f"{at}.shortcut.{n}" for n in (0, 1)}
    return layers


def preact_layers():
    layers = {"conv1": "conv1", "bn": "bn", "linear": "fc"}
    for group in (1, 2, 3, 4):
        for index in (0, 1):
            at = f"layer{group}.{index}"
            layers |= {f"{at}.{name}": f"{at}.{name}" for name in ("bn1", "conv1", "bn2", "conv2")}
        if group > 1:
            layers[f"layer{group}.0.shortcut.0"] = f"layer{group}.0.shortcut"
    return layers


def vgg_layers():
    """Return {released layer: ours}: blocks from 0, their layers numbered with the ReLUs."""
    layers = {f"classifier.{index}": f"classifier.{index}" for index in (0, 2, 4)}
    for block, count in enumerate((2, 2, 3, 3, 3)):
        place = 0
        for conv in range(1, count + 1):
            layers[f"block{block}.{place}"] = f"block{block + 1}.conv{conv}"
            layers[f"block{block}.{place + 1}"] = f"block{block + 1}.bn{conv}"
            place += 3
    return layers


def wide_layers(count):
    layers = {name: name for name in ("conv1", "bn1", "fc")}
    for block in (1, 2, 3):
        for index in range(count):
            for name in ("bn1", "conv1", "bn2", "conv2"):
                layers[f"block{block}.layer.{index}.{name}"] = f"block{block}.{index}.{name}"
        layers[f"block{block}.layer.0.convShortcut"] = f"block{block}.0.shortcut"
    return layers


def defense_layers():
    layers = {"aux.0": "aux_head"}
    for theirs, ours in (("separation.sep_net", "separation"), ("recalibration.rec_net", "recalibration")):
        layers |= {f"{theirs}.{index}": f"{ours}.{index}" for index in (0, 1, 3, 4, 6)}
    return layers


NETWORKS = {
    "resnet18": (lambda: resnet18(width=4), "layer4", resnet_layers((2, 2, 2, 2), 2)),
    "resnet50": (lambda: resnet50(width=2), "layer4", resnet_layers((3, 4, 6, 3), 3)),
    "preact_resnet18": (lambda: preact_resnet18(width=4), "relu", preact_layers()),
    "vgg16": (lambda: vgg16(width=4), "block4", vgg_layers()),
    "wide_resnet": (lambda: WideResNet(depth=16, widen_factor=2), "relu", wide_layers(2)),
}
KNOWN_KEYS = {
    "resnet18": ("layer2.0.shortcut.1.running_var", "layer4.1.bn2.weight", "linear.bias"),
    "resnet50": ("layer1.0.shortcut.0.weight", "layer4.2.conv3.weight", "linear.weight"),
    "preact_resnet18": ("layer3.0.shortcut.0.weight", "bn.running_mean", "linear.weight"),
    "vgg16": ("block0.0.bias", "block1.4.running_mean", "block4.6.weight", "classifier.4.bias"),
    "wide_resnet": ("block1.layer.0.convShortcut.weight", "block3.layer.1.bn2.bias", "fc.weight"),
}
"""Some keys as they stand in the releases, by hand."""
FSR_KEYS = ("separation.sep_net.6.weight", "recalibration.rec_net.4.running_var", "aux.0.bias")


def build(name, *, defended):
    make, tap, _ = NETWORKS[name]
    model = attach(make(), {tap: FSR} if defended else {}, (3, 32, 32), 10)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.weight, module.bias, module.running_mean):
                nn.init.uniform_(value, -0.5, 1.0)
            nn.init.uniform_(module.running_var, 0.2, 2.0)
    return model.eval()


def released(name, model):
    """Return a model's weights under the released names."""
    _, tap, layers = NETWORKS[name]
    named = {theirs: f"backbone.{ours}" for theirs, ours in layers.items()}
    if model.defenses:
        named |= {theirs: f"taps.{tap}.defense.{ours}" for theirs, ours in defense_layers().items()}
    own = model.state_dict()
    state = {
        f"{theirs}.{leaf}": own.pop(f"{ours}.{leaf}")
        for theirs, ours in named.items() for leaf in NORM if f"{ours}.{leaf}" in own
    }  # fmt: skip
    assert own == {}, "the restated layout leaves layers out"
    return state


@pytest.mark.parametrize("defended", [True, False], ids=["with FSR", "bare"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_released_state_dict_gives_the_same_logits(name, defended, tmp_path):
    x = torch.rand(2, 3, 32, 32)
    model = build(name, defended=defended)
    state = released(name, model)
    assert set(KNOWN_KEYS[name]) <= set(state)
    assert defended == (set(FSR_KEYS) <= set(state))
    torch.save(state, tmp_path / "weights.pt")
    other = build(name, defended=defended)
    assert not torch.equal(other(x), model(x))
    load_weights(other, tmp_path / "weights.pt")
    assert torch.equal(other(x), model(x))
    out, wanted = other.forward_with_aux(x), model.forward_with_aux(x)
    for point, aux in wanted.aux.items():
        assert all(torch.equal(out.aux[point][key], value) for key, value in aux.items())


def prefixed(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


WRAPPED = {
    "module": lambda state: prefixed("module.", state),
    "model": lambda state: prefixed("model.", state),
    "module.model": lambda state: prefixed("module.model.", state),
    "model.module": lambda state: prefixed("model.module.", state),
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "net": lambda state: {"net": prefixed("module.", state), "acc": 51.2, "epoch": 99},
    "model_key": lambda state: {"model": state, "optimizer": {"state": {}, "param_groups": []}},
    "model_state_dict": lambda state: {"model_state_dict": state},
}


@pytest.mark.parametrize("wrapping", WRAPPED)
def test_what_training_scripts_put_around_it_is_taken_off(wrapping, tmp_path):
    x = torch.rand(2, 3, 32, 32)
    model = build("resnet18", defended=True)
    torch.save(WRAPPED[wrapping](released("resnet18", model)), tmp_path / "weights.pt")
    other = build("resnet18", defended=True)
    load_weights(other, tmp_path / "weights.pt")
    assert torch.equal(other(x), model(x))


@pytest.mark.parametrize("defended", [True, False], ids=["with FSR", "bare"])
def test_the_unused_copy_of_a_group_is_left_out(defended, tmp_path):
    x = torch.rand(2, 3, 32, 32)
    model = build("wide_resnet", defended=defended)
    state = released("wide_resnet", model)
    unused = {f"sub_{name}": torch.randn(3) for name in state if name.startswith("block1.")}
    assert "sub_block1.layer.0.convShortcut.weight" in unused
    torch.save(prefixed("module.", state | unused), tmp_path / "weights.pt")
    other = build("wide_resnet", defended=defended)
    load_weights(other, tmp_path / "weights.pt")
    assert torch.equal(other(x), model(x))


def test_releases_older_than_the_count_of_batches_load(tmp_path):
    x = torch.rand(2, 3, 32, 32)
    model = build("wide_resnet", defended=False)
    state = released("wide_resnet", model)
    torch.save({k: v for k, v in state.items() if not k.endswith("tracked")}, tmp_path / "weights.pt")
    other = build("wide_resnet", defended=False)
    load_weights(other, tmp_path / "weights.pt")
    assert torch.equal(other(x), model(x))


@pytest.mark.parametrize("name", NETWORKS)
def test_our_own_names_are_left_alone(name, tmp_path):
    x = torch.rand(2, 3, 32, 32)
    for defended in (True, False):
        model = build(name, defended=defended)
        states = [model.state_dict()] + ([] if defended else [model.backbone.state_dict()])
        for state in states:
            torch.save(state, tmp_path / "weights.pt")
            other = build(name, defended=defended)
            load_weights(other, tmp_path / "weights.pt")
            assert torch.equal(other(x), model(x))


def test_a_defence_that_the_model_has_not_is_named(tmp_path):
    torch.save(released("resnet18", build("resnet18", defended=True)), tmp_path / "weights.pt")
    with pytest.raises(
        ValueError, match=r"another architecture: \d+ unknown \(.*separation\.sep_net\.0\.weight"
    ) as caught:
        load_weights(build("resnet18", defended=False), tmp_path / "weights.pt")
    assert "\n" not in str(caught.value)


def test_a_defence_that_the_file_has_not_is_named(tmp_path):
    torch.save(released("resnet18", build("resnet18", defended=False)), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"\d+ missing \(taps\.layer4\.defense\.separation\.0\.weight, "):
        load_weights(build("resnet18", defended=True), tmp_path / "weights.pt")


def test_another_networks_release_is_refused_with_its_keys(tmp_path):
    torch.save(released("wide_resnet", build("wide_resnet", defended=False)), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"missing \(.*\); \d+ unknown \(.*block1\.layer\.0\.bn1\.weight"):
        load_weights(build("resnet18", defended=False), tmp_path / "weights.pt")


class Code:
    """Runs code when unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_a_file_that_would_run_code_is_refused(tmp_path):
    state = released("resnet18", build("resnet18", defended=False))
    torch.save({"net": state, "note": Code(tmp_path / "it ran")}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"refused to load .*weights\.pt: it is damaged or holds more than tensors"):
        load_weights(build("resnet18", defended=False), tmp_path / "weights.pt")
    assert not (tmp_path / "it ran").exists()
    torch.load(tmp_path / "weights.pt", weights_only=False)  # the file would have
    assert (tmp_path / "it ran").exists()


CONSTANTS = ([0.4914, 0.4822, 0.4465], [0.2471, 0.2435, 0.2616])


@pytest.mark.parametrize(
    ("names", "prefix"),
    [
        (("normalize.mean", "normalize.std"), "model."),
        (("mu", "sigma"), ""),
        (("0.mean", "0.std"), "1."),
        (("module.mu", "module.sigma"), "module."),
    ],
)
def test_the_constants_of_a_normalisation_are_those_of_the_network_or_refused(tmp_path, names, prefix):
    plain = resnet18(width=4)
    state = {f"{prefix}{name.replace('fc.', 'linear.')}": value for name, value in plain.state_dict().items()}
    state |= {name: torch.tensor(values).view(1, 3, 1, 1) for name, values in zip(names, CONSTANTS, strict=True)}
    path = tmp_path / "zoo.pt"
    torch.save({"state_dict": state}, path)
    bare = attach(resnet18(width=4), {})
    cure = r"give model.normalize='{mean: \[0.4914, 0.4822, 0.4465\], std: \[0.2471, 0.2435, 0.2616\]}'"
    with pytest.raises(ValueError, match=cure):
        load_weights(bare, path)
    backbone, other = resnet18(width=4), resnet18(width=4)
    Normalize(*CONSTANTS).put_on(backbone)
    Normalize(CONSTANTS[0], [0.2, 0.2, 0.2]).put_on(other)
    with pytest.raises(ValueError, match=cure):
        load_weights(attach(other, {}), path)
    model = attach(backbone, {}).eval()
    load_weights(model, path)
    x = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in CONSTANTS)
    assert torch.equal(model(x), plain.eval()((x - mean) / std))

"""Networks of torchvision and timm, defended by the names of their own layers."""

import sys

import pytest
import timm
import torch
from omegaconf import OmegaConf
from torch import nn
from torchvision import models

from fsr_lab.core.defense import FeatureDefense
from fsr_lab.core.types import DefenseOutput
from fsr_lab.defense.fsr import FSR
from fsr_lab.engine.build import build_model
from fsr_lab.model.defended import attach
from fsr_lab.model.library_model import expand_declared, from_timm, from_torch_hub, from_torchvision
from fsr_lab.model.points import feature_points


def on_meta(build, *args, **options):
    with torch.device("meta"):
        return build(*args, **options)


def network(source, name, options):
    """Build by torchvision or timm on the meta device: structure without weights."""
    return on_meta({"torchvision": from_torchvision, "timm": from_timm}[source], name, options=options)


# (source, name, options, point, layout, side) -> shape of the feature
REAL = [
    ("torchvision", "resnet18", None, "layer4", "nchw", 64, (512, 2, 2)),
    ("torchvision", "vgg16_bn", None, "features.42", "nchw", 64, (512, 4, 4)),
    ("torchvision", "vit_b_32", {"image_size": 64}, "encoder.layers.encoder_layer_11", "nlc", 64, (768, 2, 2)),
    ("torchvision", "swin_t", None, "features.7", "nhwc", 64, (768, 2, 2)),
    ("timm", "resnet18", None, "layer4.1.act1", "nchw", 64, (512, 2, 2)),
    ("timm", "convnext_atto", None, "stages.3", "nchw", 64, (320, 2, 2)),
    ("timm", "swin_tiny_patch4_window7_224", {"img_size": 64}, "layers.3", "nhwc", 64, (768, 2, 2)),
    ("timm", "vit_tiny_patch16_224", {"img_size": 32}, "blocks.11", "nlc", 32, (192, 2, 2)),
    ("timm", "vit_tiny_patch16_224", {"img_size": 32}, "patch_embed", "nlc", 32, (192, 2, 2)),
    ("timm", "deit_tiny_distilled_patch16_224", None, "blocks.11", "nlc", 224, (192, 14, 14)),
]


@pytest.mark.parametrize(("source", "name", "options", "point", "layout", "side", "shape"), REAL)
def test_real_networks_are_defended_where_they_are_told(source, name, options, point, layout, side, shape):
    net = network(source, name, options)
    model = on_meta(attach, net, {point: FSR}, (3, side, side), 10, layout=layout).eval()
    out = model.forward_with_aux(torch.empty(2, 3, side, side, device="meta"))
    assert out.logits.shape == (2, 10)
    assert out.aux[point]["f_tilde"].shape == (2, *shape)
    assert out.aux[point]["p_tilde"].shape == (2, 10)


class AsItIs(FeatureDefense):
    """Passes its feature map on, and says what it was."""

    def __init__(self, shape, num_classes):
        super().__init__()

    def forward(self, features, targets=None, *, route=None, want_aux=True):
        return DefenseOutput(features.clone(), {"map": features} if want_aux else {})


@pytest.mark.parametrize(
    ("name", "options", "point", "layout"),
    [
        ("test_resnet", {}, "layer4", "nchw"),
        ("swin_tiny_patch4_window7_224", {"img_size": 32, "embed_dim": 8, "depths": (1, 1, 2, 1)}, "layers.2", "nhwc"),
        ("test_vit", {"img_size": 32}, "blocks.3", "nlc"),
    ],
)
def test_to_a_map_and_back_changes_no_bit_of_a_real_network(name, options, point, layout):
    net = from_timm(name, options=options).eval()
    x = torch.rand(2, 3, 32, 32)
    wanted = net(x)
    model = attach(net, {point: AsItIs}, (3, 32, 32), 10, layout=layout).eval()
    assert torch.equal(model(x), wanted)
    (aux,) = model.forward_with_aux(x).aux.values()
    # the places of a map are those of the image: changing the last patch changes the last place most
    model.eval()
    changed = x.clone()
    changed[:, :, 24:, 24:] += 1
    (other,) = model.forward_with_aux(changed).aux.values()
    difference = (aux["map"] - other["map"]).norm(dim=1)
    assert difference.flatten(1).argmax(1).tolist() == [difference[0].numel() - 1] * 2


REFUSED = [
    ("torchvision", "resnet18", None, "layer4.0.relu", "nchw", 64, r"got 2 runs; .* the block around it, 'layer4\.0'"),
    ("torchvision", "resnet18", None, "layr4", "nchw", 64,
        r"no layer named 'layr4' in ResNet; close names: \['layer4'"),
    ("torchvision", "resnet18", None, "fc", "nchw", 64,
        r"to give a \(C, H, W\) activation, got \(10,\); tap an earlier"),
    ("torchvision", "resnet18", None, "layer4", "nhwc", 64,
        r"got \(512, 2, 2\) with the channels first; set layout=nchw"),
    ("torchvision", "vit_b_32", {"image_size": 64}, "encoder.layers.encoder_layer_11", "nchw", 64,
        r"got \(5, 768\); set layout=nlc for tokens, or tap"),
    ("torchvision", "vit_b_32", None, "encoder.ln", "nlc", 64,
        r"does not take images of shape \(3, 64, 64\): Wrong image height! .* as \{img_size: 64\} \(timm\)"),
    ("torchvision", "swin_t", None, "features.7.1", "nchw", 64,
        r"got \(2, 2, 768\) with the channels last; set layout=nhwc"),
    ("torchvision", "swin_t", None, "features.7", "nchw", 32, r"got \(1, 1, 768\) with the channels last"),
    ("torchvision", "googlenet", {"aux_logits": False, "init_weights": False}, "conv1.relu", "nchw", 64,
        r"no layer named 'conv1\.relu' in GoogLeNet; .* calls the function, F\.relu, tap the input of the next module"),
    ("timm", "swin_tiny_patch4_window7_224", {"img_size": 64}, "layers.3", "nchw", 64,
        r"got \(2, 2, 768\) with the channels last; set layout=nhwc"),
    ("timm", "swin_tiny_patch4_window7_224", {"img_size": 64}, "layers.3.blocks.1", "nchw", 64, "set layout=nhwc"),
    ("timm", "swin_tiny_patch4_window7_224", {"img_size": 64}, "layers.3", "nlc", 64,
        r"expected 'layers\.3' to give a \(L, C\) activation, got \(2, 2, 768\)"),
    ("timm", "vit_tiny_patch16_224", {"img_size": 32}, "blocks.11", "nchw", 32, r"got \(5, 192\); set layout=nlc"),
    ("timm", "vit_tiny_patch16_224", None, "blocks.11", "nlc", 32,
        r"VisionTransformer does not take images of shape \(3, 32, 32\): Input height .* as \{img_size: 32\} \(timm\)"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "name", "options", "point", "layout", "side", "message"), REFUSED)
def test_points_of_real_networks_are_refused_in_one_line(source, name, options, point, layout, side, message):
    net = network(source, name, options)
    with pytest.raises(ValueError, match=message) as caught:
        attach(net, {point: FSR}, (3, side, side), 10, layout=layout)
    assert "\n" not in str(caught.value)


def test_where_a_network_calls_the_function_the_next_input_is_tapped():
    net = network("torchvision", "googlenet", {"aux_logits": False, "init_weights": False})
    model = on_meta(attach, net, {"maxpool1:in": FSR}, (3, 64, 64), 10).eval()
    out = model.forward_with_aux(torch.empty(1, 3, 64, 64, device="meta"))
    assert out.aux["maxpool1:in"]["mask"].shape == (1, 64, 32, 32)


@pytest.mark.parametrize("build", [from_torchvision, from_timm])
@pytest.mark.parametrize(
    ("name", "nearest"), [("resnet81", "resnet18"), ("ResNet18", "resnet18"), ("vgg16_nb", "vgg16")]
)
def test_an_unknown_network_gets_the_nearest_names(build, name, nearest):
    library = {from_torchvision: "torchvision", from_timm: "timm"}[build]
    with pytest.raises(ValueError, match=rf"^no {library} model named '{name}'; close names: \[.*'{nearest}") as caught:
        build(name)
    assert "\n" not in str(caught.value)


def test_a_name_like_no_other_gets_five_all_the_same():
    with pytest.raises(ValueError, match="no timm model named 'qq'; close names: ") as caught:
        from_timm("qq")
    assert len(str(caught.value).partition("[")[2].split(",")) == 5


def test_a_hub_address_is_no_name():
    with pytest.raises(ValueError, match="no timm model named 'hf-hub:someone/something'"):
        from_timm("hf-hub:someone/something")


def test_without_timm_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"^timm networks need an extra: pip install 'fsr-lab\[timm\]'$"):
        from_timm("resnet18")


@pytest.mark.parametrize("name", ["resnet18", "vgg16_bn", "vit_b_32", "swin_t", "mobilenet_v3_small"])
def test_torchvision_networks_take_the_datas_channels(name):
    net = on_meta(from_torchvision, name, num_classes=7, in_channels=1).eval()
    side = 224 if name == "vit_b_32" else 64
    assert net(torch.empty(2, 1, side, side, device="meta")).shape == (2, 7)
    like = on_meta(models.get_model, name, num_classes=7)
    changed = {key for key, value in like.state_dict().items() if net.state_dict()[key].shape != value.shape}
    assert len(changed) == 1


def test_nothing_is_fetched_unless_asked_for(monkeypatch):
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    asked = []
    monkeypatch.setattr(timm, "create_model", lambda name, **options: asked.append(options) or nn.Identity())
    from_torchvision("squeezenet1_1")
    from_timm("resnet18", options={"drop_rate": 0.1})
    from_timm("resnet18", pretrained=True)
    wanted = {"num_classes": 10, "in_chans": 3}
    assert asked == [{"pretrained": False, "drop_rate": 0.1} | wanted, {"pretrained": True} | wanted]
    with pytest.raises(AssertionError, match="would download"):
        from_torchvision("squeezenet1_1", pretrained=True)


def refuse(*args, **options):
    raise AssertionError("would download")


def test_pretrained_weights_fit_all_but_head_and_stem(monkeypatch):
    stored = models.squeezenet1_1().state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *args, **options: stored)
    net = from_torchvision("squeezenet1_1", num_classes=10, in_channels=1, pretrained=True)
    own = net.state_dict()
    differing = {key for key in stored if own[key].shape != stored[key].shape or not torch.equal(own[key], stored[key])}
    assert differing == {"features.0.weight", "classifier.1.weight", "classifier.1.bias"}


def test_a_network_of_several_outputs_is_refused():
    with pytest.raises(ValueError, match=r"googlenet gives auxiliary logits in training; set options to \{aux_logits"):
        on_meta(from_torchvision, "googlenet", options={"init_weights": False, "aux_logits": True})


def test_an_option_that_the_network_has_not_is_refused():
    with pytest.raises(TypeError, match="img_size"):
        on_meta(from_timm, "resnet18", options={"img_size": 32})


def test_stages_that_a_network_declares_stand_for_its_layers():
    net = network("timm", "resnet18", None)
    assert expand_declared(net, "feature_info[-4:]") == ["layer1", "layer2", "layer3", "layer4"]
    assert expand_declared(net, "feature_info[0:]") == ["act1", "layer1", "layer2", "layer3", "layer4"]
    assert expand_declared(net, "feature_info[-1]") == ["layer4"]
    assert expand_declared(net, "feature_info[0]") == ["act1"]
    assert expand_declared(net, "layer1:in") == ["layer1:in"]
    with pytest.raises(ValueError, match=r"ResNet declares 5 stages in its feature_info, asked for feature_info\[5\]"):
        expand_declared(net, "feature_info[5]")
    with pytest.raises(ValueError, match="Identity declares 0 stages"):
        expand_declared(nn.Identity(), "feature_info[-1]")


@pytest.fixture
def composed():
    """Return the function that gives the config of a library's network: (source, defence, more)."""

    def config(source, defense, model):
        from hydra import compose, initialize_config_module

        with initialize_config_module("fsr_lab.conf", version_base="1.3"):
            cfg = compose("train", overrides=["dataset=cifar10", f"model={source}", f"defense={defense}"])
        return OmegaConf.merge(
            OmegaConf.create({key: cfg[key] for key in ("seed", "dataset", "model", "defense")}), model
        )

    return config


def test_a_timm_network_is_defended_at_its_last_stage(composed):
    model = build_model(composed("timm", "fsr", {"model": {"name": "test_resnet"}}))
    assert list(model.defenses) == ["layer4"]
    cfg = composed("timm", "fsr", {"model": {"name": "test_vit", "options": {"img_size": 32}, "layout": "nlc"}})
    model = build_model(cfg)
    assert list(model.defenses) == [timm.create_model("test_vit").feature_info[-1]["module"]]
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_the_stages_of_a_timm_network_are_one_site_each(composed):
    model = build_model(composed("timm", "fd", {"model": {"name": "test_resnet"}}))
    assert list(model.defenses) == ["layer1", "layer2", "layer3", "layer4"]


def test_a_network_that_names_no_points_gets_candidates(composed):
    cfg = composed("torchvision", "fsr", {})
    with pytest.raises(ValueError, match=r"names no layer .* give defense\.at=LAYER, such as .*'layer4', ") as caught:
        build_model(cfg)
    assert "\n" not in str(caught.value)
    model = build_model(OmegaConf.merge(cfg, {"defense": {"at": "layer4"}}))
    assert list(model.defenses) == ["layer4"]
    with pytest.raises(ValueError, match=r"names no layer .* give defense\.at=LAYER"):
        build_model(composed("timm", "cas", {"model": {"name": "test_resnet"}}))


def test_candidates_are_layers_that_can_be_defended():
    net = network("torchvision", "resnet18", None)
    points = feature_points(net, (3, 64, 64))
    assert "layer4" in points
    assert list(on_meta(attach, net, dict.fromkeys(points, FSR), (3, 64, 64), 10).defenses) == points


@pytest.mark.parametrize(("name", "point"), [("resnet18", "layer4"), ("convnext_atto", "stages.3")])
def test_a_defended_timm_network_compiles_to_one_graph(name, point):
    model = attach(from_timm(name), {point: FSR}, (3, 32, 32), 10).eval()
    x = torch.rand(2, 3, 32, 32)
    wanted = model(x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), wanted, atol=1e-5, rtol=0)


HUBCONF = """
dependencies = ["torch"]
import torch

def small(num_classes=10):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, num_classes))

def words():
    return "no network"
"""


def test_a_network_of_a_hub_repository_is_built_by_its_entry_point(tmp_path):
    (tmp_path / "hubconf.py").write_text(HUBCONF)
    network = from_torch_hub(str(tmp_path), "small", options={"num_classes": 4})
    assert network(torch.rand(2, 3, 2, 2)).shape == (2, 4)


@pytest.mark.parametrize(
    ("name", "message"),
    [("large", "has no entry point 'large' in its hubconf.py"), ("words", "words of .* gives a str, not a network")],
)
def test_a_wrong_entry_point_is_told(tmp_path, name, message):
    (tmp_path / "hubconf.py").write_text(HUBCONF)
    with pytest.raises(ValueError, match=message):
        from_torch_hub(str(tmp_path), name)


def test_a_folder_that_is_no_hub_repository_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"no hubconf.py in .*; give owner/name, or a folder"):
        from_torch_hub(str(tmp_path), "small")

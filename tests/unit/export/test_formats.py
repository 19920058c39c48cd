"""What each format holds, and that each loads back by us and by whom it is made for."""

import importlib.util
import json
import sys
import warnings
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from torch import nn
from torch.testing import assert_close

import fsr_lab
from fsr_lab.defense.fd import FD
from fsr_lab.export import robustbench, writing
from fsr_lab.export.blueprint import Part
from fsr_lab.export.program import logits_program
from fsr_lab.export.writing import export
from fsr_lab.model.defended import DefendedModel, attach

WEIGHTS = ("safetensors", "robustbench", "torch_hub", "timm")


def module_at(path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def want(network, images):
    with torch.no_grad():
        return network.model(images)


@pytest.mark.parametrize("format", WEIGHTS)
def test_weights_come_back_as_the_same_network_bit_for_bit(exported, network, images, want, format):
    done = exported(format)
    loaded = fsr_lab.load(done.folder, sha256=done.sha256)
    assert isinstance(loaded, DefendedModel)
    assert not any(module.training for module in loaded.modules())
    with torch.no_grad():
        assert torch.equal(loaded(images), want)
    state = network.model.state_dict()
    assert {name: value.shape for name, value in loaded.state_dict().items()} == {
        name: value.shape for name, value in state.items()
    }
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())


def test_a_program_comes_back_bit_for_bit_without_what_inference_does_not_use(exported, network, images, want):
    done = exported("torch_export")
    loaded = fsr_lab.load(done.folder, sha256=done.sha256)
    with torch.no_grad():
        assert torch.equal(loaded(images), want)
        assert torch.equal(loaded(images[:1]), network.model(images[:1]))
    held = {name for name, _ in torch.export.load(done.folder / "model.pt2").state_dict.items()}
    everything = set(network.model.state_dict())
    assert held < everything
    assert {name for name in everything - held if not name.endswith("num_batches_tracked")} == {
        "taps.block2.defense.aux_head.weight", "taps.block2.defense.aux_head.bias",
    }  # fmt: skip


def test_onnx_comes_back_within_a_hundred_thousandth(exported, network, images, want):
    import onnx

    done = exported("onnx")
    loaded = fsr_lab.load(done.folder)
    with torch.no_grad():
        assert_close(loaded(images), want, rtol=0, atol=1e-5)
        assert_close(loaded(images[:1]), network.model(images[:1]), rtol=0, atol=1e-5)
    graph = onnx.load(done.folder / "model.onnx").graph
    head = network.model.state_dict()["taps.block2.defense.aux_head.weight"].numpy()
    shapes = [tuple(each.dims) for each in graph.initializer]
    assert head.shape in shapes  # the network's own last layer has that shape, too
    values = [onnx.numpy_helper.to_array(each) for each in graph.initializer if tuple(each.dims) == head.shape]
    assert not any(np.array_equal(value, head) for value in values)
    with pytest.raises(RuntimeError, match="no gradients; attack it with square or spsa"):
        loaded(images.clone().requires_grad_())


def test_safetensors_are_readable_without_us(exported, network):
    with safe_open(exported("safetensors").folder / "model.safetensors", "pt") as stored:
        assert stored.metadata() == {"format": "pt"}
        assert set(stored.keys()) == set(network.model.state_dict())


def test_torch_hub_loads_the_folder_by_its_one_entry_point(exported, images, want):
    folder = str(exported("torch_hub").folder)
    conf = module_at(f"{folder}/hubconf.py", "small_for_hub")
    # torch.hub.list's own rule; it takes no folder
    assert [name for name, value in vars(conf).items() if callable(value) and not name.startswith("_")] == ["small"]
    assert "AT+FSR" in conf.small.__doc__
    with torch.no_grad():
        assert torch.equal(torch.hub.load(folder, "small", source="local")(images), want)
    fresh = torch.hub.load(folder, "small", source="local", pretrained=False, num_classes=3)
    assert fresh(images).shape == (5, 3)
    with pytest.raises(ValueError, match="of 10 classes, not 3"):
        torch.hub.load(folder, "small", source="local", num_classes=3)


def test_timm_creates_it_and_fits_it_to_other_classes(exported, network, images, want):
    module_at(exported("timm").folder / "small.py", "small_for_timm")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = timm.create_model("small", pretrained=True).eval()
        other = timm.create_model("small", pretrained=True, num_classes=4).eval()
    with torch.no_grad():
        assert torch.equal(model(images), want)
        assert other(images).shape == (5, 4)
    assert torch.equal(other.backbone.block1.conv.weight, network.model.backbone.block1.conv.weight)
    assert timm.data.resolve_model_data_config(model)["mean"] == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="images of 3 channels"):
        timm.create_model("small", in_chans=1)


def test_robustbench_finds_everything_where_it_looks(exported, network, images, want):
    """By its documented layout and `load_model`'s own steps; `make release-check` asks the package itself."""
    folder = exported("robustbench").folder
    name, entry = module_at(folder / "robustbench/model_zoo/architectures/small.py", "small_for_zoo").ENTRY
    model = entry["model"]()
    state = torch.load(folder / "models" / "cifar10" / "Linf" / f"{name}.pt", map_location=torch.device("cpu"))
    for prefix in ("module.", "model."):
        state = {key[len(prefix) :] if prefix in key else key: value for key, value in state.items()}
    model.load_state_dict(state, strict=True)
    with torch.no_grad():
        assert torch.equal(model.eval()(images), want)
    assert entry["gdrive_id"] is not None
    info = json.loads((folder / "model_info" / "cifar10" / "Linf" / "small.json").read_text())
    assert info["eps"] == "8/255"
    assert (info["clean_acc"], info["autoattack_acc"]) == (None, None)  # nobody has measured it
    assert "not measured: fsr evaluate" in (folder / "submission.md").read_text()


def test_robustbench_gets_the_accuracies_of_the_whole_test_set_alone(evaluated):
    (full,) = evaluated.records
    info = robustbench.model_info(evaluated)
    assert (info["clean_acc"], info["reported"], info["autoattack_acc"]) == ("60.00", "30.00", "30.00")
    part = replace(
        full, **{key: getattr(full, key)[..., :9_999] for key in ("outcome", "margin", "norm", "ids", "labels")}
    )
    assert robustbench.model_info(replace(evaluated, records=(part,)))["autoattack_acc"] is None
    weaker = replace(full, threat=fsr_lab.Threat(norm="linf", eps="4/255"))
    assert robustbench.model_info(replace(evaluated, records=(weaker,)))["clean_acc"] is None


@pytest.mark.parametrize("name", ["conv.weight", "a.model.weight", "module.model.a", "a.module.b", "model.module.a"])
def test_robustbench_cuts_give_every_key_back(network, tmp_path, name):
    renamed = replace(network, model=SimpleNamespace(state_dict=lambda: {name: torch.zeros(1)}))
    state = torch.load(tmp_path / robustbench.write(tmp_path, renamed))
    for prefix in ("module.", "model."):
        state = {key[len(prefix) :] if prefix in key else key: value for key, value in state.items()}
    assert list(state) == [name]
    assert list(robustbench.unwrapped(torch.load(tmp_path / robustbench.write(tmp_path, renamed)))) == [name]


def test_robustbench_takes_no_other_data(network, tmp_path):
    with pytest.raises(ValueError, match=r"ranks networks for .* and ImageNet, this one is for toy"):
        export(replace(network, dataset="toy"), "robustbench", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_card_says_what_is_known(evaluated, tmp_path):
    text = (export(evaluated, "safetensors", tmp_path / "out").folder / "README.md").read_text()
    assert text.startswith("---\nlicense: mit\nlibrary_name: fsr-lab\n")
    assert "at most linf 8/255" in text
    assert "| strategy | AT(steps=10) |" in text
    assert "| augmentation | pad_crop_flip |" in text
    # 6000 of 10000 and Wilson's interval, worked out by hand; a failed check puts its dagger there
    assert "| small (last) | linf 8/255 | 10000 | 60.00† [59.0, 61.0] |" in text
    assert "30.00† [29.1, 30.9]" in text
    assert "**small (last), the doctor's verdict: masked:" in text
    assert "- fail noise: half of the predictions change from call to call" in text
    assert "## Licence\n\nMIT\n" in text


def test_the_card_of_an_unevaluated_network_says_so(exported):
    text = (exported("safetensors").folder / "README.md").read_text()
    assert "nothing is known of their robustness" in text
    assert "%" not in text.partition("## Results")[2].partition("## Recipe")[0]


def test_an_export_that_fails_leaves_the_one_before(network, written, monkeypatch, images):
    done = written("safetensors")
    before = {path.name: path.read_bytes() for path in done.folder.iterdir()}
    monkeypatch.setattr(writing, "load", lambda *_, **__: lambda x: network.model(x) + 1e-6)
    with pytest.raises(RuntimeError, match="gives other logits than the network, by up to"):
        written("safetensors")
    assert {path.name: path.read_bytes() for path in done.folder.iterdir()} == before
    assert [path.name for path in done.folder.parent.iterdir()] == ["safetensors"]


def test_an_export_replaces_an_export_and_nothing_else(written, network, tmp_path):
    assert written("safetensors").sha256 == written("safetensors").sha256
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="holds something other than an export; give another out="):
        export(network, "safetensors", mine)
    assert (mine / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    ("format", "package", "extra"),
    [
        ("safetensors", "safetensors.torch", "export"), ("torch_hub", "safetensors.torch", "export"),
        ("timm", "timm", "timm"), ("onnx", "onnxscript", "export"), ("onnx", "onnx", "export"),
    ],
)  # fmt: skip
def test_a_format_whose_package_is_missing_names_the_command(network, tmp_path, monkeypatch, format, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"pip install 'fsr-lab\[{extra}\]'"):
        export(network, format, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "1st", "a-b", "a b", "a.b", 'a"b'])
def test_a_name_is_one_that_code_can_have(network, name):
    with pytest.raises(ValueError, match="letters, digits and underscores"):
        replace(network, name=name)


def test_an_unknown_format_gets_its_neighbours(network, tmp_path):
    with pytest.raises(ValueError, match=r"no format named 'onx'; close names: \['onnx'\]"):
        export(network, "onx", tmp_path / "out")


def test_a_program_of_tokens_takes_any_number_of_images():
    """A defence on a transformer's tokens once fixed the batch to the two images that the program was traced with."""

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.fc = nn.Conv2d(3, 4, 4, stride=4), nn.Linear(4, 3)
            self.block = nn.Identity()

        def forward(self, x):
            return self.fc(self.block(self.embed(x).flatten(2).transpose(1, 2)).mean(1))

    model = attach(Tokens(), {"block": partial(FD, kernel="mean")}, (3, 8, 8), 3, "nlc").eval()
    x = torch.rand(5, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(logits_program(model, (3, 8, 8)).module()(x), model(x))


def test_a_defence_that_draws_at_test_time_goes_into_no_graph(network, tmp_path):
    blueprint = replace(network.blueprint, defenses={"block2": Part("fsr_lab.defense.fsr.FSR", {"noise": "always"})})
    noisy = replace(network, model=blueprint.build(), blueprint=blueprint)
    with pytest.raises(ValueError, match="the defence at block2 draws at test time, and ONNX draws other numbers"):
        export(noisy, "onnx", tmp_path / "onnx")
    done = export(noisy, "safetensors", tmp_path / "weights")  # compared under the same draws
    assert fsr_lab.load(done.folder).defenses["block2"].eval_noise

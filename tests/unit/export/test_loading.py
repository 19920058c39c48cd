"""What `load` refuses: other bits than were written, other versions, and whatever could run code."""

import json
import os
import pickle
import shutil
import sys
from types import ModuleType

import pytest
import torch
from torch import nn

import fsr_lab
from fsr_lab.core.defense import FeatureDefense
from fsr_lab.core.types import DefenseOutput
from fsr_lab.export.bundle import CONFIG, sha256


def edited(folder, change):
    """Change what `config.json` says, as somebody would who can write the folder, and return its path."""
    path = folder / CONFIG
    plain = json.loads(path.read_text())
    change(plain)
    path.write_text(json.dumps(plain))
    return path


def rehashed(folder):
    """Give every file the hash that it has now: the tampering of somebody who knows how an export is made."""
    edited(folder, lambda plain: plain.update(files={name: sha256(folder / name) for name in plain["files"]}))


class Armed:
    """Pickled, it makes a file of that name when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("format", ["safetensors", "robustbench", "onnx", "torch_export"])
def test_one_changed_bit_is_noticed(exported, tmp_path, format):
    shutil.copytree(exported(format).folder, tmp_path / "copy")
    name = json.loads((tmp_path / "copy" / CONFIG).read_text())["weights_file"]
    path = tmp_path / "copy" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"refused .*{path.name}: its hash is not the one in config.json"):
        fsr_lab.load(tmp_path / "copy", sha256=exported(format).sha256)


def test_the_hash_that_was_told_stands_for_every_file(written):
    done = written("safetensors")
    network = fsr_lab.load(done.folder, sha256=done.sha256)
    state = {name: value + 1 for name, value in network.state_dict().items()}
    from safetensors.torch import save_file

    save_file(state, done.folder / "model.safetensors")
    rehashed(done.folder)
    with pytest.raises(ValueError, match=rf"its sha256 is .*, expected {done.sha256}; it is another export"):
        fsr_lab.load(done.folder, sha256=done.sha256)
    # who takes any hash is at least told that the weights are not those that the description was written for
    with pytest.raises(ValueError, match=r"holds other weights than config.json was written for"):
        fsr_lab.load(done.folder)


def test_a_pickle_in_the_place_of_weights_runs_nothing(written, tmp_path):
    done, trap = written("robustbench"), tmp_path / "ran"
    name = json.loads((done.folder / CONFIG).read_text())["weights_file"]
    torch.save({"weight": Armed(trap)}, done.folder / name)
    rehashed(done.folder)
    with pytest.raises(ValueError, match=r"refused to load .*could run code"):
        fsr_lab.load(done.folder)
    assert not trap.exists()
    pickle.loads(pickle.dumps(Armed(trap)))
    assert trap.exists()  # it would have


def test_a_pickle_called_safetensors_runs_nothing(written, tmp_path):
    done, trap = written("safetensors"), tmp_path / "ran"
    torch.save(Armed(trap), done.folder / "model.safetensors")
    rehashed(done.folder)
    with pytest.raises(ValueError, match=r"refused to load .*holds no safetensors"):
        fsr_lab.load(done.folder)
    assert not trap.exists()


def test_a_program_needs_its_hash(exported):
    with pytest.raises(ValueError, match=r"refused to load .*model.pt2 without its hash: .* can run code"):
        fsr_lab.load(exported("torch_export").folder)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("os.system", "refused to call os.system, which is not of fsr_lab.model"),
        ("fsr_lab.engine.safe_reading.read_safely", "not of fsr_lab.model"),
        ("fsr_lab.model.resnet.torch", "there is no constructor"),
        ("fsr_lab.model.resnet._group", "there is no constructor"),
        ("fsr_lab.model.resnet.resnet19", "there is no constructor fsr_lab.model.resnet.resnet19 in this version"),
        ("fsr_lab.model.rasnet.resnet18", "fsr_lab.model.rasnet.resnet18 is not installed here"),
        ("fsr_lab.model.library_model.from_torch_hub", "refused to build a network by a torch.hub repository's code"),
        ("fsr_lab.modelling.x", "not of fsr_lab.model"),
    ],
)
def test_only_our_constructors_are_called(written, target, said):
    done = written("safetensors")
    edited(done.folder, lambda plain: plain["network"]["backbone"].update(target=target))
    with pytest.raises((ValueError, ImportError), match=said):
        fsr_lab.load(done.folder)


def test_a_constructor_fetches_no_weights_and_a_defence_is_one(written):
    done = written("safetensors")
    edited(done.folder, lambda plain: plain["network"]["backbone"]["arguments"].update(pretrained=True))
    with pytest.raises(ValueError, match="with pretrained, which reads weights from elsewhere"):
        fsr_lab.load(done.folder)
    options = {"options": {"checkpoint_path": "evil.pt"}}
    edited(done.folder, lambda plain: plain["network"]["backbone"].update(arguments=options))
    with pytest.raises(ValueError, match="with checkpoint_path, which reads weights from elsewhere"):
        fsr_lab.load(done.folder)
    done = written("safetensors")
    probe = {"target": "fsr_lab.defense.probe.Probe", "arguments": {}}
    edited(done.folder, lambda plain: plain["network"]["defenses"].update(block2=probe))
    with pytest.raises(ValueError, match=r"fsr_lab.defense.probe.Probe"):
        fsr_lab.load(done.folder)


def test_whose_package_is_trusted_may_build(written, monkeypatch):
    """A defence from somebody's own package: `trust` names it, and nothing less does."""
    theirs = ModuleType("theirs")

    class Scaled(FeatureDefense):
        __module__ = "theirs"

        def __init__(self, *, shape, num_classes):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, features, targets=None, *, route=None, want_aux=True):
            return DefenseOutput(self.scale * features, {})

    theirs.Scaled = Scaled
    monkeypatch.setitem(sys.modules, "theirs", theirs)
    done = written("safetensors")
    part = {"target": "theirs.Scaled", "arguments": {}}
    edited(done.folder, lambda plain: plain["network"]["defenses"].update(block2=part))
    with pytest.raises(ValueError, match=r"if you know its author, give trust=\['theirs'\]"):
        fsr_lab.load(done.folder)
    with pytest.raises(ValueError, match=r"weights of another network than config.json describes"):
        fsr_lab.load(done.folder, trust=["theirs"])  # it was called, and the weights are FSR's
    with pytest.raises(TypeError, match=r"expected a list of packages to trust, got 'theirs'; give \['theirs'\]"):
        fsr_lab.load(done.folder, trust="theirs")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda plain: plain.update(format_version=2),
            "of format version 2, and this fsr-lab reads up to 1; pip install",
        ),
        (lambda plain: plain.pop("format_version"), "was not written by fsr export"),
        (lambda plain: plain.update(format="pickle"), "no format named 'pickle'"),
        (lambda plain: plain.pop("weights_hash"), "is not whole"),
        (lambda plain: plain["network"].pop("backbone"), "no description of a network"),
        (lambda plain: plain["network"].update(image_shape=[3]), "no description of a network"),
        (lambda plain: plain["network"].update(num_classes=7), "num_classes"),
        (lambda plain: plain["files"].update({"../secret": "0"}), "it names ../secret, which is not of this folder"),
        (
            lambda plain: plain["files"].update({"/etc/passwd": "0"}),
            "it names /etc/passwd, which is not of this folder",
        ),
        (lambda plain: plain["files"].pop("model.safetensors"), "gives no hash of model.safetensors"),
        (lambda plain: plain["files"].update(more="0"), "is not whole: more is missing"),
    ],
)
def test_a_description_that_cannot_be_is_refused_with_its_cure(written, change, said):
    done = written("safetensors")
    edited(done.folder, change)
    with pytest.raises(ValueError, match=said):
        fsr_lab.load(done.folder)


def test_a_description_that_is_no_json_is_refused(written):
    done = written("safetensors")
    (done.folder / CONFIG).write_text("not json")
    with pytest.raises(ValueError, match="was not written by fsr export"):
        fsr_lab.load(done.folder)


def test_a_place_without_an_export_says_what_to_give(tmp_path):
    with pytest.raises(ValueError, match=r"no export in .*: it has no config.json; make one with fsr export"):
        fsr_lab.load(tmp_path)
    with pytest.raises(ValueError, match="give its folder, or owner/name on the Hugging Face hub"):
        fsr_lab.load(tmp_path / "nothing")
    (tmp_path / "model.onnx").touch()
    with pytest.raises(ValueError, match="is a file; give the export's folder"):
        fsr_lab.load(tmp_path / "model.onnx")


@pytest.fixture
def hub(exported, tmp_path, monkeypatch):
    """Return the folder of a hub's cache that holds one network, as `owner/small` at v1, with no connection."""
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    place = tmp_path / "models--owner--small"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "v1").write_text("a" * 40)
    (place / "snapshots").mkdir()
    shutil.copytree(exported("safetensors").folder, place / "snapshots" / ("a" * 40))
    return place


def test_a_hub_name_is_fetched_and_verified(hub, exported, network, images):
    loaded = fsr_lab.load("owner/small@v1", sha256=exported("safetensors").sha256)
    with torch.no_grad():
        assert torch.equal(loaded(images), network.model(images))
    with pytest.raises(ValueError, match="its sha256 is"):
        fsr_lab.load("owner/small@v1", sha256="0" * 64)
    with pytest.raises(OSError, match="no folder owner/other, and the Hugging Face hub gave no network of that name"):
        fsr_lab.load("owner/other")


def test_the_hub_needs_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install 'fsr-lab\[export\]'"):
        fsr_lab.load("owner/small")


def test_onnx_needs_its_package_and_a_graph(exported, tmp_path, monkeypatch):
    folder = shutil.copytree(exported("onnx").folder, tmp_path / "copy")
    (folder / "model.onnx").write_bytes(b"no graph")
    rehashed(folder)
    with pytest.raises(ValueError, match=r"model.onnx is no ONNX graph"):
        fsr_lab.load(folder)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"pip install 'fsr-lab\[export\]'"):
        fsr_lab.load(folder)


def test_loading_leaves_the_random_state_alone(exported):
    torch.manual_seed(3)
    want = torch.rand(2)
    torch.manual_seed(3)
    fsr_lab.load(exported("safetensors").folder)
    assert torch.equal(torch.rand(2), want)

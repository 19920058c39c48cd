"""The public names (DESIGN §2.11): which they are, that they say what they take, and what torch.hub finds."""

import ast
import inspect
import re
from pathlib import Path

import pytest
import torch
import yaml

import fsr_lab

ROOT = Path(__file__).parents[2]
STABLE = {"DefendedModel", "EvaluationRecord", "FSR", "Threat", "attach", "evaluate", "load"}
"""Taking one away, or one of the arguments below, breaks other people's code: it needs a new major version."""
ARGUMENTS = {
    "attach": ["backbone", "defenses", "image_shape", "num_classes", "layout"],
    "evaluate": [
        "model", "batches", "attacks", "threat", "seed", "chains", "after", "limits", "ledger", "shard", "chunk",
        "keep_images", "doctor", "deep", "name", "command", "data_hash", "about",
    ],
    "load": ["place", "sha256", "trust"],
    "Threat": ["norm", "eps"],
}  # fmt: skip


def test_the_names_are_those_that_were_promised():
    assert set(fsr_lab.__all__) == STABLE
    assert all(list(inspect.signature(getattr(fsr_lab, name)).parameters) == want for name, want in ARGUMENTS.items())
    with pytest.raises(AttributeError, match="it has"):
        fsr_lab.nothing  # noqa: B018


def test_type_checkers_see_the_same_names_in_the_same_places():
    tree = ast.parse((ROOT / "src" / "fsr_lab" / "__init__.py").read_text())
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in guarded.body for alias in node.names}
    assert seen == {name: getattr(fsr_lab, name).__module__ for name in STABLE}
    assert (ROOT / "src" / "fsr_lab" / "py.typed").is_file()


@pytest.mark.parametrize("name", sorted(STABLE))
def test_a_public_name_tells_its_types_and_its_arguments(name):
    found = getattr(fsr_lab, name)
    parameters = [each for each in inspect.signature(found).parameters.values() if each.name != "self"]
    assert [each.name for each in parameters if each.annotation is each.empty] == []
    if inspect.isfunction(found):
        assert inspect.signature(found).return_annotation is not inspect.Signature.empty
    told = inspect.getdoc(found) or ""
    assert [each.name for each in parameters if not re.search(rf"^\s+{each.name}:|\b{each.name}: ", told, re.M)] == []
    methods = [
        method for _, method in inspect.getmembers(found, inspect.isfunction)
        if inspect.isclass(found) and method.__module__.startswith("fsr_lab") and not method.__name__.startswith("_")
    ]  # fmt: skip
    assert [method.__name__ for method in methods if not inspect.getdoc(method)] == []
    assert [method.__name__ for method in methods if "return" not in method.__annotations__] == []


@pytest.mark.parametrize(
    ("entry", "size"),
    [
        ("resnet18", {"width": 4}), ("resnet50", {"width": 4}), ("vgg16", {"width": 4}),
        ("preact_resnet18", {"width": 4}), ("wrn34_10", {"widen_factor": 1}),
    ],
)  # fmt: skip
def test_torch_hub_builds_the_papers_networks(entry, size):
    model = torch.hub.load(str(ROOT), entry, source="local", fsr=True, num_classes=7, **size)
    tap = yaml.safe_load((ROOT / "conf" / "model" / f"{entry}.yaml").read_text())["tap"]
    assert [(point, type(defense).__name__) for point, defense in model.defenses.items()] == [(tap, "FSR")]
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 7)
    assert not torch.hub.load(str(ROOT), entry, source="local", **size).defenses


def test_torch_hub_finds_these_entry_points_and_no_more():
    body = ast.parse((ROOT / "hubconf.py").read_text()).body
    names = {node.name for node in body if isinstance(node, ast.FunctionDef)}
    assert {name for name in names if not name.startswith("_")} == {
        "resnet18", "resnet50", "vgg16", "preact_resnet18", "wrn34_10", "load",
    }  # fmt: skip
    imports = (alias for node in body if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names)
    assert all((alias.asname or alias.name).startswith("_") for alias in imports)

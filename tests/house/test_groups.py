"""Groups and packages are one list (DESIGN §2.4): the YAML is the registration, the folder is the registry."""

import dataclasses
import inspect
import pkgutil
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from lightning import Callback

from fsr_lab.core.defense import FeatureDefense
from fsr_lab.dataset.base import ImageDataModule
from fsr_lab.strategy.base import Strategy

CONF = Path(__file__).parents[2] / "conf"
YAMLS = {path.relative_to(CONF).as_posix(): path for path in sorted(CONF.rglob("*.yaml"))}

HOUSE = {"model", "defense", "strategy", "modifier", "attack", "dataset", "evaluation", "analysis", "callback"}
CORE = {"threat", "crafting"}
"""The groups without a package of their own: what they build lives in core."""
OUTSIDE = {"optim", "trainer", "logger"}
TARGETLESS = {"budget", "compile", "experiment", "precision", "paths", "hydra", "launcher", "hparams_search", "scale"}

READ_BY_CONFIGS = {
    "model": {"tap", "stages", "last_blocks", "activations", "convs", "layout", "normalize", "functional"},
    "dataset": {"recipe"},
}
"""Keys beside a `_target_` that other configs interpolate or the builder reads; the constructor does not see them."""

HYDRA = {"_target_", "_partial_", "_convert_", "_recursive_", "_args_", "defaults"}
VARIABLE = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


def content(name):
    return yaml.safe_load(YAMLS[name].read_text()) or {}


def group(name):
    return name.split("/")[0] if "/" in name else ""


def composed(name):
    """Return a YAML's content over that of the options of its own group which it starts from."""
    own = content(name)
    merged = {}
    for entry in own.get("defaults", ["_self_"]):
        if entry == "_self_":
            continue
        if isinstance(entry, str):
            option, _, package = entry.partition("@")
            folder = "" if option.startswith("/") else f"{Path(name).parent.as_posix()}/"
            under = composed(f"{folder}{option.removeprefix('/')}.yaml")
            merged |= {package: under} if package not in ("", "_global_") else under
        else:
            ((key, _),) = entry.items()
            if "@" in key and not key.partition("@")[2].startswith("_global_"):
                merged[key.partition("@")[2].split(".")[0]] = {}
    return {key: value for key, value in (merged | own).items() if key != "defaults"}


def nodes(tree):
    """Yield every mapping with a `_target_`."""
    if isinstance(tree, dict):
        if "_target_" in tree:
            yield tree
        for value in tree.values():
            yield from nodes(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from nodes(value)


def located(target):
    module, _, name = target.rpartition(".")
    return getattr(import_module(module), name)


def misplaced(group_name, target):
    """Tell what is wrong with a target's place, or nothing."""
    if group_name in TARGETLESS:
        return f"{group_name} composes, it builds nothing: {target}"
    if group_name in OUTSIDE:
        return f"{target} belongs into a group of the house" if target.startswith("fsr_lab.") else None
    allowed = ("fsr_lab.core.",) if group_name in CORE else (f"fsr_lab.{group_name}.", "fsr_lab.core.")
    if target.startswith("fsr_lab.") and not target.startswith(allowed):
        return f"{target} is not of {allowed}"
    return None


def disagreements(node, extra):
    """Return what keys and constructor do not agree on."""
    target = located(node["_target_"])
    parameters = inspect.signature(target).parameters
    keys = set(node) - HYDRA - extra
    unknown = set() if any(p.kind in VARIABLE[:1] for p in parameters.values()) else keys - set(parameters)
    required = {name for name, p in parameters.items() if p.default is p.empty and p.kind not in VARIABLE}
    missing = set() if node.get("_partial_") else required - keys
    return [f"{node['_target_']} takes no {name}" for name in sorted(unknown)] + [
        f"{node['_target_']} needs {name}" for name in sorted(missing)
    ]


def public_classes(package):
    """Return the classes of a package that its modules define themselves and do not hide."""
    found = []
    for info in pkgutil.iter_modules(import_module(package).__path__, prefix=f"{package}."):
        module = import_module(info.name)
        found += [
            value for name, value in vars(module).items()
            if inspect.isclass(value) and value.__module__ == info.name and not name.startswith("_")
        ]  # fmt: skip
    return found


def is_attack(cls):
    """A dataclass that is called with a model, images and labels."""
    call = cls.__dict__.get("__call__")
    return dataclasses.is_dataclass(cls) and call is not None and list(inspect.signature(call).parameters)[1:] == [
        "model", "x", "y",
    ]  # fmt: skip


IMPLEMENTS = {
    "attack": is_attack,
    "strategy": lambda cls: issubclass(cls, Strategy) and cls is not Strategy,
    "defense": lambda cls: issubclass(cls, FeatureDefense),
    "dataset": lambda cls: issubclass(cls, ImageDataModule) and not inspect.isabstract(cls),
    "modifier": lambda cls: hasattr(cls, "before_loss") or (issubclass(cls, Callback) and not inspect.isabstract(cls)),
}


@pytest.mark.parametrize("name", YAMLS)
def test_opens_with_a_comment(name):
    first, *rest = YAMLS[name].read_text().splitlines()
    assert first.startswith("# ")
    if first.startswith("# @package"):
        assert rest[0].startswith("# ")


@pytest.mark.parametrize("name", [name for name in YAMLS if group(name)])
def test_targets_lie_in_the_package_of_the_group(name):
    assert group(name) in HOUSE | CORE | OUTSIDE | TARGETLESS
    assert [line for node in nodes(content(name)) if (line := misplaced(group(name), node["_target_"]))] == []


@pytest.mark.parametrize("name", [name for name in YAMLS if any(nodes(composed(name)))])
def test_keys_are_constructor_arguments(name):
    top = composed(name)
    found = [
        line
        for node in nodes(top)
        for line in disagreements(node, READ_BY_CONFIGS.get(group(name), set()) if node is top else set())
    ]
    assert found == []


@pytest.mark.parametrize("group_name", IMPLEMENTS)
def test_every_public_class_of_the_protocol_has_a_yaml(group_name):
    targets = {node["_target_"] for name in YAMLS if group(name) == group_name for node in nodes(content(name))}
    classes = [cls for cls in public_classes(f"fsr_lab.{group_name}") if IMPLEMENTS[group_name](cls)]
    assert classes
    assert {f"{cls.__module__}.{cls.__name__}" for cls in classes} - targets == set()


def test_the_protocols_are_recognised():
    found = {
        group_name: {cls.__name__ for cls in public_classes(f"fsr_lab.{group_name}") if implements(cls)}
        for group_name, implements in IMPLEMENTS.items()
    }
    assert found["attack"] >= {"PGD"}
    assert found["strategy"] >= {"AT", "Natural"}
    assert found["defense"] >= {"FSR"}
    assert found["dataset"] >= {"CIFAR10", "Digits", "Toy"}
    assert "ImageDataModule" not in found["dataset"]
    assert "Strategy" not in found["strategy"]


@pytest.mark.parametrize("name", [name for name in YAMLS if group(name) == "experiment"])
def test_experiments_compose_and_claim(name):
    experiment = content(name)
    assert YAMLS[name].read_text().startswith("# @package _global_\n")
    assert list(nodes(experiment)) == []
    assert {"expected", "hardware", "hours"} <= set(experiment["claim"])


def test_an_eps_is_written_in_threats_and_recipes_only():
    def written(tree, path=()):
        if isinstance(tree, dict):
            for key, value in tree.items():
                if key == "eps" and not str(value).startswith("${"):
                    yield ".".join(path)
                yield from written(value, (*path, str(key)))

    places = {(group(name), where) for name in YAMLS for where in written(content(name))}
    assert places <= {("threat", ""), ("dataset", "recipe")}
    assert places


@pytest.mark.parametrize(
    ("group_name", "target"),
    [
        ("attack", "fsr_lab.strategy.at.AT"),
        ("threat", "fsr_lab.attack.pgd.PGD"),
        ("optim", "fsr_lab.core.threat.Threat"),
        ("experiment", "fsr_lab.attack.pgd.PGD"),
    ],
)
def test_the_check_sees_a_misplaced_target(group_name, target):
    assert misplaced(group_name, target)


def test_the_check_sees_a_wrong_key_and_a_missing_one():
    node = {"_target_": "fsr_lab.core.threat.Threat", "norm": "linf", "epsilon": 0.1}
    assert disagreements(node, set()) == [
        "fsr_lab.core.threat.Threat takes no epsilon", "fsr_lab.core.threat.Threat needs eps",
    ]  # fmt: skip
    assert disagreements(node | {"eps": 0.1}, {"epsilon"}) == []

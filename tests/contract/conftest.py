"""A test that takes `attack_name` runs once for every YAML of conf/attack, and so on: the folder is the list.

The worked examples of the documentation stand beside the built-in options: they are written to a folder of their own,
which joins Python's path and Hydra's as a user's would. `module_name` runs over the defences that have a module, which
is all but `none`.
"""

import functools
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from worked_examples import PAGES, write_examples

from fsr_lab.engine.build import assembled

_KEPT = TemporaryDirectory()  # removed with this module
EXAMPLES = write_examples(PAGES, Path(_KEPT.name))
sys.path.append(str(EXAMPLES))
CONFS = (Path(__file__).parents[2] / "conf", EXAMPLES / "conf")
PARAMETRISED = ("attack", "defense", "strategy", "model", "experiment")
TOY = ("dataset=toy", "model=tiny_cnn", "model.batch_norm=true")


def pytest_generate_tests(metafunc):
    for group in PARAMETRISED:
        if f"{group}_name" in metafunc.fixturenames:
            metafunc.parametrize(f"{group}_name", _options(group))
    if "module_name" in metafunc.fixturenames:
        files = {name: OmegaConf.load(_yaml("defense", name)) for name in _options("defense")}
        metafunc.parametrize("module_name", [name for name, node in files.items() if "module" in node])


@pytest.fixture(scope="session")
def compose_config():
    """Return the function that composes a verb's config as the command line would: (*overrides, verb="train")."""
    return _composed


@pytest.fixture(scope="session")
def load_attack():
    """Return the function that builds an attack by its option: (name, *overrides)."""
    return _attack


@pytest.fixture(scope="session")
def toy():
    """Return the overrides of the toy set under a tiny network with BatchNorm."""
    return TOY


@pytest.fixture(scope="session")
def option_file():
    """Return the function that finds an option's YAML: (group, name)."""
    return _yaml


def _options(group):
    folders = [conf / group for conf in CONFS]
    names = [
        path.relative_to(folder).with_suffix("").as_posix() for folder in folders for path in folder.rglob("*.yaml")
    ]
    assert names, f"conf/{group} holds no option"
    return sorted(names)


def _yaml(group, name):
    (path,) = (path for conf in CONFS if (path := conf / group / f"{name}.yaml").is_file())
    return path


@functools.cache
def _composed(*overrides, verb="train"):
    # what Hydra would know of a running job; the other verbs do not have both keys
    surroundings = ["paths.run=unused", "label=unused"] if verb != "prepare" else ["paths.run=unused"]
    surroundings.append(f"hydra.searchpath=[file://{EXAMPLES / 'conf'}]")
    with initialize_config_module("fsr_lab.conf", version_base="1.3"):
        return compose(verb, overrides=[*overrides, *surroundings])


@functools.cache
def _attack(name, *overrides):
    cfg = _composed("dataset=toy", "budget=smoke", f"attack@val_attack={name}", *overrides)
    return assembled(_with_sources(OmegaConf.to_container(cfg.val_attack, resolve=True)), lambda _: (_source, ""))


def _with_sources(node):
    """The same node, with something in the place of every network that it crafts on."""
    inner = {key: _with_sources(value) for key, value in node.items() if isinstance(value, dict)}
    return node | inner | ({"source": "given"} if "source" in node else {})


def _source(x):
    """Map images of any size and precision to four logits: what attacks craft on that craft on another network."""
    pixels = x.flatten(1)
    weight = torch.cos(torch.arange(4 * pixels.shape[1], dtype=x.dtype)).reshape(-1, 4)
    return (pixels @ weight).tanh()

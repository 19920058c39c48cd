"""What an installation holds and what an import costs: each part alone, and nothing that it does not need."""

import json
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src" / "fsr_lab"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LAYER_1 = ("model", "defense", "attack", "strategy", "modifier", "dataset")
HERE = [name for name in LAYER_1 if (SRC / name).is_dir()]

HEAVY = (
    "torch",
    "torchvision",
    "lightning",
    "wandb",
    "matplotlib",
    "hydra",
    "omegaconf",
    "tensorboard",
    "sklearn",
    "timm",
)

# forks before each import, so that torch is loaded once; prints {imported: every module then loaded}
PROBE = """
import json, os, sys
from importlib import import_module

def loaded(name):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        for module in name.split():
            import_module(module)
        with os.fdopen(write, "w") as stream:
            json.dump(sorted(sys.modules), stream)
            stream.flush()
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as stream:
        text = stream.read()
    assert os.waitpid(child, 0)[1] == 0, name
    return json.loads(text)

bare, after_torch = json.load(sys.stdin)
found = {name: loaded(name) for name in bare}
import numpy, torch
found |= {name: loaded(name) for name in after_torch}
print(json.dumps(found))
"""


def modules_of(package):
    return " ".join(f"fsr_lab.{package}.{path.stem}" for path in sorted((SRC / package).glob("[!_]*.py")))


BARE = ("fsr_lab", "fsr_lab.cli", "fsr_lab.report.table", modules_of("report"))
FRONT = " ".join(sorted({import_module("fsr_lab")._PUBLIC[name] for name in import_module("fsr_lab").__all__}))
"""Where all public names come from."""
AFTER_TORCH = (
    "fsr_lab.defense.fsr", "fsr_lab.attack.pgd", "fsr_lab.core.record", FRONT, *map(modules_of, ("core", *HERE)),
)  # fmt: skip


@pytest.fixture(scope="module")
def loaded():
    """Return {what was imported, in a process of its own: the modules that were then loaded}."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        input=json.dumps([BARE, AFTER_TORCH]),
        capture_output=True,
        text=True,
        check=True,
    )
    return {name: set(modules) for name, modules in json.loads(done.stdout).items()}


def test_packages_are_the_folders():
    folders = {
        "fsr_lab" + "".join(f".{part}" for part in path.parent.relative_to(SRC).parts) for path in SRC.rglob("*.py")
    }
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(folders | {"fsr_lab.conf"})
    assert all((SRC / Path(*name.split(".")[1:]) / "__init__.py").is_file() for name in folders)
    assert PROJECT["tool"]["setuptools"]["package-dir"] == {"": "src", "fsr_lab.conf": "conf"}


def test_the_malicious_lightning_releases_are_excluded():
    requirements = {r.name: r for r in map(Requirement, PROJECT["project"]["dependencies"])}
    lightning = requirements["lightning"].specifier
    assert not lightning.contains("2.6.2")
    assert not lightning.contains("2.6.3")
    assert lightning.contains("2.6.6")


def test_the_base_is_the_card_of_dependencies():
    names = {Requirement(text).name for text in PROJECT["project"]["dependencies"]}
    assert {"torch", "torchvision", "lightning", "hydra-core", "omegaconf", "torchmetrics", "wandb"} <= names
    assert PROJECT["project"]["scripts"] == {"fsr": "fsr_lab.cli:main"}
    assert PROJECT["project"]["license"] == "MIT"


def test_version_is_that_of_the_package():
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "fsr_lab.__version__"}
    assert re.search(r'^__version__ = "\d+\.\d+\.\d+', (SRC / "__init__.py").read_text(), re.MULTILINE)


def test_the_package_alone_loads_no_part_of_itself(loaded):
    assert {name for name in loaded["fsr_lab"] if name.startswith("fsr_lab")} == {"fsr_lab"}
    assert loaded["fsr_lab"].isdisjoint(HEAVY)


def test_the_command_line_loads_no_torch(loaded):
    assert loaded["fsr_lab.cli"].isdisjoint({"torch", "torchvision", "lightning", "wandb", "matplotlib", "sklearn"})


@pytest.mark.parametrize("name", ["fsr_lab.defense.fsr", "fsr_lab.attack.pgd", "fsr_lab.core.record"])
def test_a_part_loads_torch_and_nothing_heavier(loaded, name):
    assert loaded[name].isdisjoint(set(HEAVY) - {"torch"})


def test_the_public_names_load_torch_and_a_progress_bar(loaded):
    assert loaded[FRONT].isdisjoint({*HEAVY, "onnx", "safetensors", "huggingface_hub"} - {"torch"})
    assert "rich" in loaded[FRONT]


@pytest.mark.parametrize("package", HERE)
def test_each_package_of_the_first_layer_imports_alone(loaded, package):
    parts = {name.split(".")[1] for name in loaded[modules_of(package)] if name.startswith("fsr_lab.")}
    assert parts == {"core", package}
    # torchmetrics, which lightning loads, plots where it finds matplotlib
    more = {"torchvision", "lightning", "sklearn", "matplotlib"} if package in ("dataset", "modifier") else set()
    assert loaded[modules_of(package)] & set(HEAVY) <= {"torch"} | more


def test_core_needs_torch_and_numpy_alone(loaded):
    assert loaded[modules_of("core")].isdisjoint(set(HEAVY) - {"torch"})


def test_tables_regenerate_without_torch(loaded):
    assert "torch" not in loaded["fsr_lab.report.table"]


def test_the_report_loads_neither_torch_nor_hydra(loaded):
    assert loaded[modules_of("report")].isdisjoint({"torch", "lightning", "hydra", "omegaconf", "wandb"})


def pins(name):
    """Return {package: version} of a constraints file."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    return {
        package.lower().replace("_", "-"): version for package, _, version in (line.partition("==") for line in lines)
    }


@pytest.mark.parametrize(
    ("extra", "differing"),
    [("tune", {"hydra-core", "omegaconf"}), ("ray", {"cloudpickle", "joblib", "python-dateutil"})],
)
def test_an_environment_of_its_own_differs_where_it_must(extra, differing):
    base, own = pins("constraints.txt"), pins(f"constraints-{extra}.txt")
    assert {name for name in base if base[name] != own.get(name)} == differing
    for text in PROJECT["project"]["optional-dependencies"][extra]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(own[requirement.name], prereleases=True)


def test_whatever_runs_jobs_elsewhere_is_an_extra():
    extras = PROJECT["project"]["optional-dependencies"]
    assert {"joblib", "slurm", "ray", "tune"} <= set(extras)
    base = {Requirement(text).name for text in PROJECT["project"]["dependencies"]}
    assert base.isdisjoint({"hydra-joblib-launcher", "submitit", "ray", "optuna"})

"""Who may import whom (DESIGN §2.2): imports point down, siblings never meet, Hydra stays at the edge."""

import ast
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src" / "fsr_lab"
MODULES = {
    ".".join(("fsr_lab", *path.relative_to(SRC).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(SRC.rglob("*.py"))
}

LAYER_1 = {"model", "defense", "attack", "strategy", "modifier", "dataset"}
BELOW = {
    "core": set(),
    **{package: {"core"} for package in LAYER_1},
    "callback": {"core", *LAYER_1},
    "evaluation": {"core", *LAYER_1, "callback"},
    "engine": {"core", *LAYER_1, "callback", "evaluation"},
    "analysis": {"core", *LAYER_1, "callback", "evaluation", "engine"},
    "report": {"core"},
    "export": {"core", *LAYER_1, "callback", "evaluation", "engine", "report"},
    "arguments": {"core"},
    "printing": {"core", "report"},
    "session": {"core", "arguments"},
    "positional": {"core", "engine", "report", "arguments", "printing", "session"},
    "sweep": {"core", "callback", "engine", "report", "arguments", "printing", "session"},
    "under_hydra": {"arguments", "session", "sweep"},
    "cli": {
        "core", *LAYER_1, "callback", "evaluation", "engine", "analysis", "report", "export", "arguments", "positional",
        "printing", "session", "sweep", "under_hydra",
    },
    "__main__": {"cli"},
}  # fmt: skip
"""What each package of fsr_lab may import of the others; whatever is not here has no place in the house."""

THIRD_PARTY = {"core": {"torch", "numpy"}}
"""Packages that may use these, and beyond them the standard library only."""

ONLY_IN = {
    "hydra": {"fsr_lab.cli", "fsr_lab.engine.build", "fsr_lab.session", "fsr_lab.sweep", "fsr_lab.under_hydra"},
    "omegaconf": {
        "fsr_lab.cli", "fsr_lab.arguments", "fsr_lab.positional", "fsr_lab.session", "fsr_lab.sweep",
        "fsr_lab.under_hydra", "fsr_lab.engine.reproducing",
        "fsr_lab.engine.build", "fsr_lab.engine.chosen", "fsr_lab.engine.run", "fsr_lab.engine.rank",
        "fsr_lab.engine.launch", "fsr_lab.engine.evaluating", "fsr_lab.engine.shard", "fsr_lab.engine.tracking",
        "fsr_lab.analysis.run", "fsr_lab.export.facts", "fsr_lab.export.run",
    },
    "lightning": {"fsr_lab.dataset", "fsr_lab.modifier", "fsr_lab.callback", "fsr_lab.engine"},
    "wandb": {"fsr_lab.engine.exhibits"},
    "torch": {
        f"fsr_lab.{name}"
        for name in ("core", *LAYER_1, "callback", "evaluation", "engine", "analysis", "export", "sweep")
    },
}  # fmt: skip
"""Third-party packages that only these modules, or modules of these packages, may import."""


def imports(tree, module, is_package):
    """Yield (absolute module, imported name or None) of every import statement and of import_module("...")."""
    parent = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, None
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                root = parent.split(".")[: len(parent.split(".")) - node.level + 1]
                base = ".".join([*root, *([base] if base else [])])
            for alias in node.names:
                yield base, alias.name
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                yield str(node.args[0].value), None


def borrowed_modules(tree):
    """Return the local names that stand for a module of fsr_lab."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname for alias in node.names if alias.asname and alias.name.startswith("fsr_lab")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fsr_lab"):
            names |= {alias.asname or alias.name for alias in node.names if f"{node.module}.{alias.name}" in MODULES}
    return names


def private(name):
    return name.startswith("_") and not name.endswith("__")


def is_within(module, places):
    return any(module == place or module.startswith(place + ".") for place in places)


def violations(source, module, *, is_package=False):
    """Return a line for every import that the house forbids."""
    tree = ast.parse(source)
    own = module.split(".")[1] if "." in module else ""
    if own and own not in BELOW:
        return [f"{module}: {own!r} has no place in the layers"]
    found = []
    for target, name in imports(tree, module, is_package):
        top, *rest = target.split(".")
        if top == "fsr_lab":
            package = rest[0] if rest else name
            if own and package in BELOW and package != own and package not in BELOW[own]:
                found.append(f"{module} imports {target}: {own} may not know {package}")
            if own and not rest and name not in BELOW and name != "__version__":
                found.append(f"{module} imports {name} from the package's front door; import it from where it lives")
            if any(private(part) for part in (*rest, name or "")) and target != module:
                found.append(f"{module} imports {target}.{name}: private to its file")
        elif top not in sys.stdlib_module_names:
            if own in THIRD_PARTY and top not in THIRD_PARTY[own]:
                found.append(f"{module} imports {top}: {own} takes {sorted(THIRD_PARTY[own])} and the standard library")
            if top in ONLY_IN and not is_within(module, ONLY_IN[top]):
                found.append(f"{module} imports {top}: only {sorted(ONLY_IN[top])} may")
    borrowed = borrowed_modules(tree)
    reached = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    for node in reached:
        if node.value.id in borrowed and private(node.attr):
            found.append(f"{module} reaches {node.value.id}.{node.attr}: private to its file")
    return found


def test_every_folder_has_its_place():
    folders = {path.name for path in SRC.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert folders <= set(BELOW)
    assert {"core", "model", "defense", "attack", "strategy", "dataset", "engine", "report"} <= folders


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    path = MODULES[module]
    assert violations(path.read_text(), module, is_package=path.name == "__init__.py") == []


@pytest.mark.parametrize("package", sorted({module.split(".")[1] for module in MODULES if module.count(".") > 1}))
def test_package_fronts_are_empty(package):
    assert (SRC / package / "__init__.py").read_text().strip() == ""


@pytest.mark.parametrize(
    ("module", "source", "said"),
    [
        ("fsr_lab.attack.x", "from fsr_lab.model.resnet import resnet18", "attack may not know model"),
        ("fsr_lab.attack.x", "def f():\n    import fsr_lab.model.resnet", "attack may not know model"),
        ("fsr_lab.model.x", "from fsr_lab.defense import fsr", "model may not know defense"),
        ("fsr_lab.model.x", "from ..defense.fsr import FSR", "model may not know defense"),
        ("fsr_lab.strategy.x", "import importlib as i\ni.import_module('fsr_lab.attack.pgd')", "may not know"),
        ("fsr_lab.core.x", "from fsr_lab.attack.pgd import PGD", "core may not know attack"),
        ("fsr_lab.core.x", "import lightning", "core takes ['numpy', 'torch']"),
        ("fsr_lab.core.x", "from omegaconf import DictConfig", "core takes ['numpy', 'torch']"),
        ("fsr_lab.callback.x", "from fsr_lab.engine.run import fit", "callback may not know engine"),
        ("fsr_lab.callback.x", "from fsr_lab.evaluation.run import evaluate", "callback may not know evaluation"),
        ("fsr_lab.evaluation.x", "import fsr_lab.engine.run as r", "evaluation may not know engine"),
        ("fsr_lab.engine.x", "from fsr_lab.report.table import Table", "engine may not know report"),
        ("fsr_lab.report.x", "from fsr_lab.engine.run import train", "report may not know engine"),
        ("fsr_lab.report.x", "import torch", "imports torch"),
        ("fsr_lab.engine.run", "from hydra.utils import instantiate", "imports hydra"),
        ("fsr_lab.engine.module", "from omegaconf import DictConfig", "imports omegaconf"),
        ("fsr_lab.attack.x", "import lightning.pytorch", "imports lightning"),
        ("fsr_lab.attack.x", "from fsr_lab import FSR", "front door"),
        ("fsr_lab.engine.x", "from fsr_lab.core.folding import _observe", "private to its file"),
        ("fsr_lab.model.x", "from fsr_lab.model import tape\ntape._AMBIENT", "private to its file"),
        ("fsr_lab.arguments", "from hydra import compose", "imports hydra"),
        ("fsr_lab.printing", "from fsr_lab.engine import run", "printing may not know engine"),
        ("fsr_lab.helpers.x", "", "has no place"),
    ],
)  # fmt: skip
def test_the_check_sees_a_violation(module, source, said):
    assert [line for line in violations(source, module) if said in line]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("fsr_lab.attack.x", "import torch\nfrom fsr_lab.core import threat\nfrom fsr_lab.attack.pgd import PGD"),
        ("fsr_lab.engine.build", "from hydra.utils import instantiate\nfrom fsr_lab.model.defended import attach"),
        ("fsr_lab.engine.run", "from omegaconf import DictConfig\nfrom fsr_lab.evaluation.run import evaluate"),
        ("fsr_lab.report.x", "import numpy, matplotlib\nfrom fsr_lab.core.record import EvaluationRecord"),
        ("fsr_lab.cli", "from hydra._internal.utils import _run_hydra\nfrom fsr_lab.engine import run"),
        ("fsr_lab.core.x", "import os, json\nimport numpy.typing"),
    ],
)
def test_the_check_passes_what_is_allowed(module, source):
    assert violations(source, module) == []

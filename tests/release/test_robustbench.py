"""A submission, loaded by RobustBench itself; it is fetched, with what it imports, into an environment of its own."""

import sys

import pytest
from release_tools import ROOT, run, surroundings

pytestmark = pytest.mark.release

PACKAGES = (
    "robustbench==1.1.1", "geotorch", "torchdiffeq", "gdown==5.1.0", "pandas", "beautifulsoup4", "soupsieve",
    "setuptools<81",
)  # fmt: skip
"""Without their dependencies: its pins are of years ago, and torch is here. Its loaders need the old setuptools."""

ASK = """
import importlib.util, json, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import pyautoattack
sys.modules["autoattack"] = pyautoattack  # the one name for the package that it imports under the other
import torch
import fsr_lab
from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel
from robustbench.model_zoo.models import model_dicts
from robustbench.utils import load_model

folder = Path(sys.argv[1])
(place,) = (folder / "robustbench" / "model_zoo" / "architectures").glob("*.py")
spec = importlib.util.spec_from_file_location("architecture", place)
architecture = importlib.util.module_from_spec(spec)
spec.loader.exec_module(architecture)
name, entry = architecture.ENTRY
model_dicts[BenchmarkDataset.cifar_10][ThreatModel.Linf][name] = entry
model = load_model(name, model_dir=folder / "models", dataset="cifar10", threat_model="Linf")
x = torch.rand(4, 3, 32, 32)
with torch.no_grad():
    assert torch.equal(model(x), fsr_lab.load(folder)(x))
keys = set(json.loads(next((folder / "model_info").rglob("*.json")).read_text()))
print(name, *sorted(keys))
"""

KEYS = [
    "link", "name", "authors", "additional_data", "number_forward_passes", "dataset", "venue", "architecture", "eps",
    "clean_acc", "reported", "autoattack_acc", "unreliable",
]  # fmt: skip
"""Of the JSON files that its repository keeps for networks of this threat."""


def test_robustbench_loads_a_submission(installed, tmp_path):
    run(
        sys.executable, "-m", "pip", "--python", installed, "install", "--quiet", "--no-deps", "--target",
        tmp_path / "zoo", *PACKAGES,
    )  # fmt: skip
    kept = ROOT / "experiments" / "adaptive" / "at_fsr_s0"
    environ = surroundings() | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path / "zoo")}
    words = ("export", f"run={kept}", "format=robustbench", f"out={tmp_path / 'out'}", "name=Doe2026Title_R18")
    run(installed.with_name("fsr"), *words, cwd=tmp_path, env=environ)
    told = run(installed, "-c", ASK, tmp_path / "out" / "robustbench", cwd=tmp_path, env=environ)
    assert told.split() == ["Doe2026Title_R18", *sorted(KEYS)]

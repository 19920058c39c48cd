"""The wheel, in a clean environment, from any directory."""

import shutil
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from records import made_record, rates
from release_tools import ROOT, environment, run, surroundings


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Return the wheel of a copy of the tree."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in ("src", "conf", "tests"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tree / "dist", tree)
    (path,) = (tree / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def clean(wheel, tmp_path_factory):
    """Return the environment's python: the wheel is installed, its dependencies are borrowed."""
    return environment(tmp_path_factory.mktemp("env") / "env", wheel)


def test_the_wheel_holds_the_package_every_config_and_no_test(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    configs = {path.relative_to(ROOT).as_posix() for path in (ROOT / "conf").rglob("*.yaml")}
    modules = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src").rglob("*.py")}
    assert {f"fsr_lab/{name}" for name in configs} <= names
    assert modules <= names
    assert {"fsr_lab/py.typed", "fsr_lab/core/doctor.md"} <= names
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"fsr_lab"}
    assert not [name for name in names if "test" in Path(name).name]
    assert {f"fsr_lab/report/templates/{name}" for name in ("page.html.j2", "page.css", "sort.js")} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_installed_wheel_finds_its_configs_from_the_root(clean):
    env = clean.parents[1]
    where = run(clean, "-c", "import fsr_lab, fsr_lab.conf as c; print(fsr_lab.__file__); print(c.__file__)", cwd="/")
    assert all(Path(line).is_relative_to(env) for line in where.splitlines())
    fsr = clean.with_name("fsr")
    searched = run(fsr, "train", "--info", "searchpath", cwd="/", env=surroundings())
    assert "pkg://fsr_lab.conf" in searched
    config = yaml.safe_load(run(fsr, "train", "--cfg", "job", cwd="/", env=surroundings()))
    assert config["defense"]["module"]["_target_"] == "fsr_lab.defense.fsr.FSR"
    assert set(config["evaluation"]["attacks"]) == {"fgsm", "pgd20", "pgd100", "cw30"}


@pytest.mark.slow
def test_the_installed_wheel_trains(clean, tiny, tmp_path):
    short = ("evaluation=none", "trainer.max_epochs=1", "+trainer.limit_train_batches=2", "name=wheel")
    run(clean.with_name("fsr"), "train", *tiny, *short, cwd=tmp_path, env=surroundings() | {"OMP_NUM_THREADS": "1"})
    (place,) = (tmp_path / "runs" / "wheel").iterdir()
    assert (place / "report.md").is_file()


@pytest.mark.slow
def test_the_installed_wheel_makes_pages(clean, tmp_path):
    made_record(rates(80, 40)).save(tmp_path / "records", "last")
    run(clean.with_name("fsr"), "report", tmp_path, cwd="/", env=surroundings())
    assert ">40.00</a>" in (tmp_path / "page.html").read_text()

"""`make release-check`: what is shipped, what it says of itself, and that it works away from this tree."""

import ast
import re
import shlex
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from release_tools import ROOT, environment, run, surroundings
from tour import steps

import fsr_lab

pytestmark = pytest.mark.release

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {name: texts for name, texts in PROJECT["optional-dependencies"].items() if name != "dev"}

PERMITTED = re.compile(
    r"(MIT|BSD|Apache|PSF|ISC|Zlib|0BSD|CC0-1\.0|BSL-1\.0|LLVM-exception|Python Software Foundation|3-Clause BSD"
    r"|MPL-2\.0|Mozilla Public License 2\.0)([ -].*)?"
)
"""Licences of what a package under MIT may depend on; the MPL's copyleft is of its own files, and we change none."""
VENDOR = re.compile(r"nvidia-.*|cuda-toolkit")
"""What torch's own builds for Linux bring along, under the licence of the GPU's maker."""
OUR_OWN_METADATA = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt", "licenses/LICENSE"}
SDIST_ALONE = {"PKG-INFO", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"}


def in_sdist(built):
    with tarfile.open(built.sdist) as archive:
        return {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}


def in_wheel(built):
    return set(zipfile.ZipFile(built.wheel).namelist())


def wheel_metadata(built):
    with zipfile.ZipFile(built.wheel) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        return Metadata.from_email(wheel.read(name), validate=True)


def test_the_wheel_holds_the_package_and_nothing_else(built, tracked):
    package = {path.relative_to("src").as_posix() for path in tracked if path.parts[0] == "src"}
    configs = {f"fsr_lab/{path.as_posix()}" for path in tracked if path.parts[0] == "conf"}
    info = f"fsr_lab-{wheel_metadata(built).version}.dist-info"
    assert in_wheel(built) == package | configs | {f"{info}/{name}" for name in OUR_OWN_METADATA}


def test_the_sdist_holds_what_the_wheel_is_built_from(built, tracked):
    sources = {path.as_posix() for path in tracked if path.parts[0] in ("src", "conf")}
    assert {name for name in in_sdist(built) if ".egg-info/" not in name} == sources | SDIST_ALONE


def test_neither_names_a_folder_of_this_machine(built):
    marks = [str(ROOT).encode(), str(Path.home()).encode() + b"/", b"/tmp/pytest-of-"]
    with zipfile.ZipFile(built.wheel) as wheel:
        found = [name for name in wheel.namelist() for mark in marks if mark in wheel.read(name)]
    assert found == []


def test_the_metadata_are_whole(built):
    about = wheel_metadata(built)  # validated by their standard
    assert (about.name, about.license_expression, about.description_content_type) == ("fsr-lab", "MIT", "text/markdown")
    assert str(about.version) == fsr_lab.__version__
    minors = {text.rpartition(" ")[2] for text in about.classifiers if "Python :: 3." in text}
    assert minors == {"3.11", "3.12", "3.13"}
    assert all(about.requires_python.contains(minor) for minor in minors)
    assert not any(about.requires_python.contains(minor) for minor in ("3.10", "3.14"))
    assert about.description.startswith("# fsr-lab")
    assert set(about.provides_extra) == set(PROJECT["optional-dependencies"])
    base = {requirement.name for requirement in about.requires_dist if requirement.marker is None}
    assert base == {Requirement(text).name for text in PROJECT["dependencies"]}
    assert base.isdisjoint({"timm", "submitit", "ray", "optuna", "onnx", "safetensors"})


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (cited["version"], cited["license"]) == (fsr_lab.__version__, PROJECT["license"])
    assert cited["preferred-citation"]["identifiers"][0]["value"] == "arXiv:2303.13846"


def test_what_is_imported_is_asked_for():
    """Base packages anywhere; those of extras inside functions alone, where their absence can be told."""
    names = packages_distributions()
    base = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}
    extra = {canonicalize_name(Requirement(text).name) for texts in EXTRAS.values() for text in texts}
    found = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for top in {module.partition(".")[0] for module in modules} - sys.stdlib_module_names - {"fsr_lab"}:
                whose = {canonicalize_name(name) for name in names.get(top, [top])}
                allowed = base | (set() if node in tree.body else extra)
                if not whose & allowed:
                    found.append(f"{path.relative_to(ROOT)}: {top}")
    assert found == []


def test_every_dependency_may_be_depended_on():
    refused = {}
    for name, there in brought(
        [*PROJECT["dependencies"], *(text for texts in EXTRAS.values() for text in texts)]
    ).items():
        terms = [term.strip(" ()") for term in re.split(r"\bAND\b|\bOR\b|\bWITH\b|;", licence_of(there))]
        if not VENDOR.fullmatch(name) and not all(PERMITTED.fullmatch(term) for term in terms):
            refused[name] = licence_of(there)
    assert refused == {}


def brought(texts):
    """Return {name: what is installed} of all that these requirements bring on this machine."""
    found, waiting = {}, [Requirement(text) for text in texts]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue  # an extra that is not installed here
        inner = [Requirement(text) for text in found[name].requires or ()]
        waiting += [each for each in inner if each.marker is None or each.marker.evaluate({"extra": ""})]
    assert {"torch", "lightning", "numpy"} <= set(found)
    return found


def licence_of(there):
    """Return what a distribution says of its licence, in the newest way it knows."""
    about = there.metadata
    classifiers = [text.rpartition(" :: ")[2] for text in about.get_all("Classifier", []) if text.startswith("License")]
    return about.get("License-Expression") or "; ".join(classifiers) or (about.get("License") or "").split("\n")[0]


def test_the_sdist_installs_too(built, tmp_path):
    python = environment(tmp_path / "env", built.sdist)
    assert "pkg://fsr_lab.conf" in run(
        python.with_name("fsr"), "train", "--info", "searchpath", cwd="/", env=surroundings()
    )


def test_what_is_installed_satisfies_what_is_asked_for(installed):
    code = (
        "import sys; from importlib.metadata import requires, version; from packaging.requirements import Requirement\n"
        "for each in map(Requirement, requires('fsr-lab')):\n"
        "    if each.marker is None and not each.specifier.contains(version(each.name), prereleases=True):\n"
        "        sys.exit(f'{each}, and {version(each.name)} is there')"
    )
    run(installed, "-c", code, cwd="/", env=surroundings())


def test_the_quick_tour_runs_from_another_directory(installed, tmp_path):
    """As the documentation has it, command by command, with the installed wheel and nothing of this tree."""
    environ = surroundings() | {"OMP_NUM_THREADS": "1"}
    where = run(installed, "-c", "import fsr_lab; print(fsr_lab.__file__)", cwd=tmp_path, env=environ)
    assert Path(where.strip()).is_relative_to(installed.parents[1])
    tour = steps(ROOT / "docs" / "quick_tour.md")
    assert {step.kind for step in tour} == {"console", "python"}
    for step in tour:
        if step.kind == "python":
            run(installed, "-c", step.text, cwd=tmp_path, env=environ)
        else:
            verb, *words = shlex.split(step.text)
            assert verb == "fsr"
            run(installed.with_name("fsr"), *words, cwd=tmp_path, env=environ)
    assert "identical: the same weights" in (tmp_path / "runs" / "reproduce" / "tour" / "reproduction.md").read_text()
    assert (tmp_path / "runs" / "report.md").is_file()

"""What would be released: built from the tracked files alone, and installed in environments of its own."""

import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from release_tools import ROOT, environment, run


class Built(NamedTuple):
    """The two files of a release."""

    sdist: Path
    wheel: Path


@pytest.fixture(scope="session")
def tracked():
    """Return the files that git knows, as a release has no others."""
    return [Path(name) for name in run("git", "-C", ROOT, "ls-files").splitlines() if (ROOT / name).is_file()]


@pytest.fixture(scope="session")
def tree(tracked, tmp_path_factory):
    """Return a copy of the tracked files; experiments, which no release has, stay behind."""
    folder = tmp_path_factory.mktemp("tree")
    for name in tracked:
        if name.parts[0] != "experiments":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def built(tree):
    """Return the sdist, and the wheel that is built from it."""
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", tree / "dist", tree)
    (sdist,), (wheel,) = (tree / "dist").glob("*.tar.gz"), (tree / "dist").glob("*.whl")
    return Built(sdist, wheel)


@pytest.fixture(scope="session")
def installed(built, tmp_path_factory):
    """Return the python of an environment with the wheel."""
    return environment(tmp_path_factory.mktemp("wheel") / "env", built.wheel)

"""Run tests under every Python and torch that is promised, as far as this machine has the Pythons.

    python tests/release/matrix.py [--python 3.12 ...] [--torch oldest newest] [--folder .matrix] [TEST ...]

Each combination gets an environment of its own, some gigabytes, which is kept and used again. The last lines tell how
each fared; a Python that is not here is named, not forgotten. The exit code is 1 if any failed.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TESTS = ("tests/unit", "tests/contract", "tests/house")


def promised_pythons() -> list[str]:
    """Return the minor versions that the classifiers name."""
    return [text.rpartition(" ")[2] for text in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", text)]


def oldest_torch() -> str:
    """Return the requirement of the oldest torch that is promised."""
    (text,) = (text for text in PROJECT["dependencies"] if text.startswith("torch>"))
    return f"torch=={re.search(r'>=([0-9.]+)', text)[1]}.*"


def found(minor: str) -> Path | None:
    """Return an interpreter of a minor version that starts: on the path, or of pyenv."""
    pyenv = sorted((Path.home() / ".pyenv" / "versions").glob(f"{minor}.*/bin/python"), reverse=True)
    for place in [shutil.which(f"python{minor}"), *pyenv]:
        if place and subprocess.run([place, "--version"], capture_output=True, check=False).returncode == 0:
            return Path(place)
    return None


def run_all(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Yield (combination, how it fared) of each."""
    for minor in options.python:
        python = found(minor)
        for torch in options.torch:
            name = f"python {minor}, {torch} torch"
            yield name, "not on this machine" if python is None else tried(python, minor, torch, options)


def tried(python: Path, minor: str, torch: str, options: argparse.Namespace) -> str:
    """Return how one combination fared."""
    env = options.folder / f"{minor}-{torch}"
    own = env / "bin" / "python"
    pins = [oldest_torch()] if torch == "oldest" else []
    commands = [
        [python, "-m", "venv", env],
        [own, "-m", "pip", "install", "--quiet", "--editable", f"{ROOT}[dev]", *pins],
        [own, "-m", "pip", "install", "--quiet", "--no-deps", "torchattacks==3.5.1"],
        [own, "-m", "pytest", "-q", "-n", "0", *options.tests],
    ]
    # constraints.txt is of one Python and one torch; here the resolver chooses, as for whoever installs the package
    for command in commands[1 if own.exists() else 0 :]:
        print("$", *command, flush=True)
        if subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False).returncode:
            return f"failed: {' '.join(map(str, command))}"
    versions = "import torch, platform; print(f'python {platform.python_version()}, torch {torch.__version__}')"
    done = subprocess.run([own, "-c", versions], capture_output=True, text=True, check=True)
    return f"passed: {done.stdout.strip()}"


def main() -> int:
    """Parse the command line, run, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="+", default=promised_pythons())
    parser.add_argument("--torch", nargs="+", choices=("oldest", "newest"), default=["oldest", "newest"])
    parser.add_argument("--folder", type=Path, default=ROOT / ".matrix")
    parser.add_argument("tests", nargs="*", default=list(TESTS))
    results = list(run_all(parser.parse_args()))
    for name, fared in results:
        print(f"{name:<28} {fared}")
    return int(any(fared.startswith("failed") for _, fared in results))


if __name__ == "__main__":
    sys.exit(main())

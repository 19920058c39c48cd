"""Commands, and environments to run them in, for the tests of a release."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[2]
FULL = os.environ.get("FSR_RELEASE_FULL") == "1"
"""Install every dependency anew, torch and all, where otherwise this environment's are borrowed."""


def run(*command, **options):
    """Run a command and return what it printed."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def surroundings():
    """Return the environment of somebody who has only just installed the package."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("FSR_", "PYTHONPATH"))}


def environment(folder, package):
    """Return the python of an environment at a folder in which that file is installed."""
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    alone = () if FULL else ("--no-index", "--no-deps", "--no-build-isolation")
    if not FULL:
        packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
        # paths alone: the .pth files there, an editable fsr_lab's among them, are not read
        own = Path(sysconfig.get_path("purelib"))
        lent = [line for path in own.glob("*.pth") for line in path.read_text().splitlines() if Path(line).is_dir()]
        borrowed = [str(own), *(line for line in lent if (Path(line) / "torch").is_dir())]
        (packages / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    what = f"{package}[export,timm]" if FULL else package
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", *alone, what)
    return python

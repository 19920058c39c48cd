"""Where a number comes from: code, versions, data, weights, machine."""

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

PACKAGES = ("fsr-lab", "torch", "torchvision", "lightning", "hydra-core", "numpy")
PLACES = ("hydra.run.dir=", "hydra.sweep.dir=", "dataset.source=", "paths.")
"""Words of a command line that tell where a machine has its folders."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Everything needed to say how a record came about. No user, host name or absolute path is kept.

    Attributes:
        command: the command line.
        revision: git commit of the source tree, "" outside one.
        dirty: whether tracked files differed from that commit.
        versions: package -> version; python and the operating system among them.
        hashes: what was read ("data", "weights", …) -> sha256 prefix.
        host: processor, cores, accelerator.
        seed: the run's seed.
    """

    command: str
    revision: str
    dirty: bool
    versions: Mapping[str, str]
    hashes: Mapping[str, str]
    host: Mapping[str, str]
    seed: int

    @classmethod
    def collect(cls, *, command: str, seed: int, hashes: Mapping[str, str]) -> Self:
        """Describe this process and the source tree that it runs."""
        revision, dirty = _revision()
        return cls(
            command=command, revision=revision, dirty=dirty, versions=_versions(), hashes=dict(hashes),
            host=_host(), seed=seed,
        )  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """Return plain containers, ready for JSON."""
        return asdict(self)


def without_places(content: Any) -> Any:
    """Return JSON content whose command lines name no folder of a machine: fit to be kept elsewhere."""
    if not isinstance(content, dict):
        return content
    found = {key: without_places(value) for key, value in content.items()}
    if isinstance(found.get("command"), str):
        words = [word for word in found["command"].split() if not word.strip("'\"").startswith(PLACES)]
        found["command"] = " ".join(re.sub(r"=['\"]?/\S*/", "=", word) for word in words)
    return found


def _revision() -> tuple[str, bool]:
    """Commit and dirty flag of the tree this package runs from; an installed wheel has none."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        if git("ls-files", "--error-unmatch", __file__):
            return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        pass
    return "", False


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "system": platform.platform(terse=True)}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def _host() -> dict[str, str]:
    import torch  # here, so that reading a record needs no torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "accelerator": "none" if accelerator is None else torch.cuda.get_device_name()
        if accelerator.type == "cuda" else accelerator.type,
    }  # fmt: skip


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()

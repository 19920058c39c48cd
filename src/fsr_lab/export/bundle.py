"""An export's folder: its files, and `config.json`, which says what they are and gives the hash of each.

NAME/
config.json   format, network, threat, hashes: everything that loading it needs
README.md     the model card
...           the format's own files
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from fsr_lab.core.files import write_text
from fsr_lab.core.suggest import unknown
from fsr_lab.export.blueprint import Blueprint

CONFIG, CARD = "config.json", "README.md"
FORMAT_VERSION = 1
"""Of `config.json`; whoever changes what its keys mean counts it up, and goes on reading the older ones."""
FORMATS = ("safetensors", "robustbench", "torch_hub", "timm", "torch_export", "onnx")


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """What `config.json` says.

    Attributes:
        format: one of `FORMATS`.
        name: of the network.
        network: how to build it.
        weights_file: which file holds its weights, or the whole program.
        weights_hash: `state_hash` of the network's state dict, or of what the program holds of it.
        threat: {"norm", "eps"} that the network was trained for.
        versions: of the packages that wrote it.
        files: {path in the folder: sha256}.
    """

    format: str
    name: str
    network: Blueprint
    weights_file: str
    weights_hash: str
    threat: Mapping[str, Any]
    versions: Mapping[str, str]
    files: Mapping[str, str]

    def write(self, folder: Path) -> str:
        """Write `config.json` and return its sha256, which stands for the whole folder."""
        plain = {
            "library_name": "fsr-lab", "format_version": FORMAT_VERSION, "format": self.format, "name": self.name,
            "network": self.network.as_dict(), "weights_file": self.weights_file, "weights_hash": self.weights_hash,
            "threat": dict(self.threat), "versions": dict(self.versions), "files": dict(self.files),
        }  # fmt: skip
        write_text(folder / CONFIG, json.dumps(plain, indent=1, sort_keys=True) + "\n")
        return sha256(folder / CONFIG)

    @classmethod
    def read(cls, folder: Path, digest: str | None = None) -> Self:
        """Read `config.json` and hold every file that it lists against its hash.

        Args:
            folder: of the export.
            digest: the sha256 that `config.json` must have, as `fsr export` printed it; None takes any.

        Raises:
            ValueError: there is no export, one of a newer version, or a file that is missing or not what was written.
        """
        path = folder / CONFIG
        if not path.is_file():
            raise ValueError(f"no export in {folder}: it has no {CONFIG}; make one with fsr export run=DIR")
        if digest is not None and sha256(path) != digest:
            raise ValueError(
                f"refused {path}: its sha256 is {sha256(path)}, expected {digest}; it is another export, or was "
                "changed: fetch it again from where the hash is from"
            )
        try:
            plain = json.loads(path.read_text())
            version = int(plain["format_version"])
        except (UnicodeDecodeError, ValueError, KeyError, TypeError) as err:
            raise ValueError(f"{path} was not written by fsr export ({err!r}); give a folder that was") from err
        if version > FORMAT_VERSION:
            raise ValueError(
                f"{folder} is of format version {version}, and this fsr-lab reads up to {FORMAT_VERSION}; "
                "pip install --upgrade fsr-lab"
            )
        try:
            bundle = cls(
                format=str(plain["format"]), name=str(plain["name"]), network=Blueprint.from_dict(plain["network"]),
                weights_file=str(plain["weights_file"]), weights_hash=str(plain["weights_hash"]),
                threat=dict(plain["threat"]), versions=dict(plain["versions"]), files=dict(plain["files"]),
            )  # fmt: skip
        except (KeyError, TypeError, AttributeError) as err:
            raise ValueError(f"{path} is not whole ({err!r}); export or fetch it again") from err
        if bundle.format not in FORMATS:
            raise ValueError(f"{unknown('format', bundle.format, FORMATS)}, in {path}")
        bundle.check_files(folder)
        return bundle

    def check_files(self, folder: Path) -> None:
        """Hold every file against its hash.

        Raises:
            ValueError: one is missing, lies outside the folder, or is not what was written.
        """
        if self.weights_file not in self.files:
            raise ValueError(f"{folder / CONFIG} gives no hash of {self.weights_file}; export or fetch it again")
        for name, expected in self.files.items():
            path = folder / name
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise ValueError(f"refused {folder / CONFIG}: it names {name}, which is not of this folder")
            if not path.is_file():
                raise ValueError(f"{folder} is not whole: {name} is missing; export or fetch it again")
            if sha256(path) != expected:
                raise ValueError(
                    f"refused {path}: its hash is not the one in {CONFIG}, so it is damaged or was changed; export or "
                    "fetch it again"
                )


def sha256(path: Path) -> str:
    """Return a file's sha256 in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hashed(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Return {name: sha256} of files in a folder."""
    return {name: sha256(folder / name) for name in sorted(names)}

"""An export from beginning to end: written aside, loaded back, compared, and only then put in its place."""

import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from fsr_lab.core.files import write_text
from fsr_lab.core.hashing import state_hash
from fsr_lab.core.provenance import Provenance
from fsr_lab.core.suggest import unknown
from fsr_lab.core.units import as_fraction
from fsr_lab.export import card
from fsr_lab.export.blueprint import Blueprint
from fsr_lab.export.bundle import CARD, CONFIG, FORMATS, Bundle, hashed
from fsr_lab.export.loading import load
from fsr_lab.export.network import Network

MODULES = {"safetensors": "safetensors_file", "torch_export": "program", "onnx": "onnx_file", "timm": "timm_module"}
"""{format: its module in this package}, where that is called otherwise; a format's package is loaded with it alone."""
TOLERANCE = {"onnx": 1e-5}
"""{format: how far logits may be from the network's}; those of all others are the same bits."""


class Exported(NamedTuple):
    """Where an export lies, and its hash."""

    folder: Path
    sha256: str


def export(network: Network, format: str, folder: Path) -> Exported:
    """Write a network in a format, load it back, and hold its logits against the network's own.

    An earlier export in the folder is replaced once the new one is whole, and not before.

    Args:
        network: what to export.
        format: one of `FORMATS`.
        folder: to write.

    Raises:
        ValueError: there is no such format, the format is not for this network, or the folder holds something else.
        ImportError: the format's package is not installed.
        RuntimeError: what was written does not give the network's logits.
    """
    if format not in FORMATS:
        raise ValueError(unknown("format", format, FORMATS))
    if folder.exists() and not (folder.is_dir() and (not any(folder.iterdir()) or (folder / CONFIG).is_file())):
        raise ValueError(f"{folder} holds something other than an export; give another out=")
    fresh, earlier = folder.with_name(f".{folder.name}.tmp"), folder.with_name(f".{folder.name}.old")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        module = import_module(f"fsr_lab.export.{MODULES.get(format, format)}")
        write: Callable[[Path, Network], str] = module.write
        weights_file = write(fresh, network)
        write_text(fresh / CARD, card.write(network, format))
        names = [path.relative_to(fresh).as_posix() for path in fresh.rglob("*") if path.is_file()]
        digest = Bundle(
            format=format, name=network.name, network=network.blueprint, weights_file=weights_file,
            weights_hash=state_hash(network.model.state_dict()), files=hashed(fresh, names),
            threat={"norm": network.threat.norm, "eps": as_fraction(network.threat.eps)},
            versions=Provenance.collect(command="", seed=0, hashes={}).versions,
        ).write(fresh)  # fmt: skip
        _check(network, load(fresh, sha256=digest, trust=_packages(network.blueprint)), format)
        if folder.exists():
            folder.replace(earlier)
        fresh.replace(folder)
    finally:
        for leftover in (fresh, earlier):
            shutil.rmtree(leftover, ignore_errors=True)
    return Exported(folder, digest)


def _packages(blueprint: Blueprint) -> list[str]:
    """Return the packages that a network of this very process is built by."""
    return [part.target.partition(".")[0] for part in (blueprint.backbone, *blueprint.defenses.values())]


def _check(network: Network, loaded: nn.Module, format: str) -> None:
    x = torch.rand(3, *network.blueprint.image_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.random.fork_rng(devices=()):
        torch.manual_seed(0)  # some defences draw
        want = network.model(x)
        torch.manual_seed(0)
        got = loaded(x)
    if not torch.allclose(got, want, rtol=0, atol=TOLERANCE.get(format, 0)):
        raise RuntimeError(
            f"the {format} export gives other logits than the network, by up to {(got - want).abs().max():.2g}; "
            "nothing was written: export it as safetensors"
        )

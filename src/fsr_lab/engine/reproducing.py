"""A run made again from what its directory says of itself."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from fsr_lab.callback.stop import InterruptedRunError
from fsr_lab.core.provenance import Provenance
from fsr_lab.engine import build
from fsr_lab.engine import run as engine
from fsr_lab.engine.safe_reading import read_safely

MOVED = ("run", "data", "runs", "ledgers")
"""Folders of `paths` that a run's config has in many places, the innermost first."""


def stored_run(run: Path) -> DictConfig:
    """Return the config of a run that can be made again.

    Raises:
        ValueError: the folder is no run, the run is not finished, or it does not say where it comes from.
    """
    cfg = build.stored_config(run)
    state = engine.read_status(run).get("state", "finished")  # kept by hand, a run comes without its status
    if state != "finished":
        raise ValueError(f"{run} is not finished ({state}) and has no outcome; fsr train resume={run} continues it")
    if not list(run.glob("provenance*.json")):
        raise ValueError(f"{run} has no provenance.json: nothing says which code, versions and data it is of")
    return cfg


def moved(cfg: DictConfig, folders: Mapping[str, Path]) -> DictConfig:
    """Return a run's config with its folders elsewhere, in every place that names them or something below them.

    Args:
        cfg: resolved.
        folders: {name in `cfg.paths`: new place}, for all of `MOVED`.
    """
    places = [(Path(str(cfg.paths[name])), folders[name]) for name in MOVED]

    def place(text: str) -> str:
        for old, new in places:
            if Path(text).is_relative_to(old):
                return str(new / Path(text).relative_to(old))
        return text

    def walk(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: walk(value) for key, value in node.items()}
        if isinstance(node, list):
            return [walk(value) for value in node]
        return place(node) if isinstance(node, str) else node

    plain = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    paths = plain["paths"] | {name: str(folders[name]) for name in MOVED}
    return cast(DictConfig, OmegaConf.create(walk(plain) | {"paths": paths}))


def differences(run: Path, data_hash: str) -> list[str]:
    """Return a line for everything in which this process, its code, machine and data are not those of a run.

    Args:
        run: its directory; a run that was continued tells of each of its parts.
        data_hash: of the data here.
    """
    now = Provenance.collect(command="", seed=0, hashes={"data": data_hash}).as_dict()
    lines: dict[str, None] = {}
    for path in sorted(run.glob("provenance*.json")):
        lines |= dict.fromkeys(_told(json.loads(path.read_text()), now))
    return list(lines)


def reproduce(cfg: DictConfig, out: Path, *, command: str) -> None:
    """Train and attack what a config says into a folder; what was begun there is continued.

    Args:
        cfg: with its folders moved.
        out: the new run directory.
        command: the command line, for provenance.

    Raises:
        ValueError: the folder holds another run, or the config does not fit this version.
        InterruptedRunError: the process was asked to stop; a checkpoint was written.
    """
    try:
        engine.train(cfg, out, command=command)
    except InterruptedRunError as err:
        raise InterruptedRunError(f"{err}; the same command continues it") from err


def same_weights(first: Path, second: Path) -> bool | None:
    """Tell whether two runs' last checkpoints hold the same weights, to the precision that the first keeps.

    None is where one of them keeps none.
    """
    paths = [run / "checkpoints" / "last.ckpt" for run in (first, second)]
    if not all(path.is_file() for path in paths):
        return None
    mine, theirs = (dict(_weights(read_safely(path))) for path in paths)
    return set(mine) <= set(theirs) and all(
        torch.equal(value, theirs[name].to(value.dtype)) for name, value in mine.items()
    )


def _weights(content: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield the online weights, and those of every average, by name."""
    yield from content["state_dict"].items()
    for average, state in (content.get("averages") or {}).items():
        yield from ((f"{average}/{name}", value) for name, value in state.items())


def _told(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    if then["revision"] != now["revision"]:
        yield f"code: revision {then['revision'] or 'unknown'} there, {now['revision'] or 'unknown'} here"
    for is_dirty, where in ((then["dirty"], "there"), (now["dirty"], "here")):
        if is_dirty:
            yield f"code: changed after its revision {where}"
    for kind, what in (("versions", "version"), ("host", "hardware"), ("hashes", "data")):
        for name in sorted({*then[kind], *now[kind]}):
            old, new = then[kind].get(name, "unknown"), now[kind].get(name, "unknown")
            if old != new:
                yield f"{what}: {name} {old} there, {new} here"

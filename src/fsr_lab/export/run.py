"""A run directory as a network to export: its checkpoint, what it was trained from, and what was found of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from torch import nn

from fsr_lab.core.hashing import state_hash
from fsr_lab.core.record import EvaluationRecord
from fsr_lab.engine import build
from fsr_lab.engine.checkpoints import checkpoint_path, load_weights
from fsr_lab.engine.run import read_status
from fsr_lab.export import facts
from fsr_lab.export.blueprint import HUB, Blueprint, Part
from fsr_lab.export.network import Network


def network_of(
    run: Path,
    *,
    checkpoint: str = "last",
    average: str | None = None,
    name: str | None = None,
    licence: str = "MIT",
    paper: Mapping[str, str | None] | None = None,
    records: Sequence[Path] = (),
) -> Network:
    """Return a finished run's network with its facts.

    Args:
        run: directory of `fsr train`.
        checkpoint: "last" or "best".
        average: which of its weights; None is the first, see `kept_weights`.
        name: of the network; None makes one of the directory's name.
        licence: SPDX identifier of the weights' licence.
        paper: {"title", "authors", "link", "venue"} of whoever made it.
        records: folders with further evaluations of these weights.

    Raises:
        ValueError: the directory is no run, or one that is not finished; a folder holds no evaluation of these weights;
            or see `Network`.
    """
    cfg = build.stored_config(run)
    state = read_status(run).get("state", "finished")  # kept by hand, a run comes without its status
    if state != "finished":
        raise ValueError(f"{run} is not finished ({state}); continue it with fsr train resume={run}, then export it")
    if build.backbone_node(cfg)["_target_"] == HUB:
        raise ValueError("a torch.hub repository's network would need its code to be loaded; export no such network")
    model = build.build_model(cfg)
    load_weights(model, checkpoint_path(run, checkpoint), average)
    model.eval()
    weights = state_hash(model.state_dict())
    own = _records_of(weights, run)
    for folder in records:
        if not (further := _records_of(weights, folder)):
            raise ValueError(
                f"no record of these weights, {weights}, below {folder}; give a folder of fsr evaluate run={run}"
            )
        own |= further
    return Network(
        name=name or _identifier(run.resolve().name), model=model, blueprint=blueprint_of(cfg, model.backbone),
        threat=build.build_threat(cfg), dataset=cfg.dataset.name, label=cfg.label, architecture=facts.architecture(cfg),
        licence=licence, recipe=facts.recipe(cfg), data=facts.data(cfg), provenance=facts.provenance(run),
        records=tuple(own.values()),
        paper={key: (paper or {}).get(key) or "" for key in ("title", "authors", "link", "venue")},
    )  # fmt: skip


def _records_of(weights: str, folder: Path) -> dict[Path, EvaluationRecord]:
    """Return the evaluations below a folder that are of weights of that hash."""
    found = {path.resolve(): EvaluationRecord.load(path) for path in sorted(folder.glob("**/records/**/*.json"))}
    return {path: record for path, record in found.items() if record.provenance.hashes.get("weights") == weights}


def blueprint_of(cfg: DictConfig, backbone: nn.Module) -> Blueprint:
    """Return what a config's network is made of; its constructor fetches no weights, they are ours."""
    own, image_shape = build.backbone_node(cfg), tuple(cfg.dataset.image_shape)
    if "pretrained" in own:
        own["pretrained"] = False
    normalize = cfg.model.get("normalize")
    return Blueprint(
        backbone=_part(own),
        defenses={point: _part(node) for point, node in build.defense_sites(cfg, backbone, image_shape).items()},
        image_shape=image_shape, num_classes=cfg.dataset.num_classes, layout=cfg.model.get("layout") or "nchw",
        normalize=cast(dict[str, Any], OmegaConf.to_container(normalize, resolve=True)) if normalize else None,
    )  # fmt: skip


def _part(node: Mapping[str, Any]) -> Part:
    return Part(str(node["_target_"]), {key: value for key, value in node.items() if not key.startswith("_")})


def _identifier(text: str) -> str:
    plain = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in text).strip("_")
    return plain if plain[:1].isalpha() else f"network_{plain}"

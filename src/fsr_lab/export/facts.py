"""What a model card says of a run: read from its config and provenance, in a reader's words."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from fsr_lab.engine import build


def architecture(cfg: DictConfig) -> str:
    """Return what a table calls the backbone."""
    node = build.backbone_node(cfg)
    name = str(node.get("name") or node["_target_"].rpartition(".")[2])
    return f"{name}, width {node['width']}" if node.get("width") else name


def recipe(cfg: DictConfig) -> dict[str, str]:
    """Return {what: how} of the training; "" where there is nothing of it."""
    plain = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    modifiers = plain.get("modifier") or {}
    return {
        "method": str(cfg.label), "strategy": told(plain["strategy"]),
        "defence": told(plain["defense"].get("module") or "none"), "at": told(plain["defense"].get("at") or ""),
        "modifiers": ", ".join(told(node) for node in modifiers.values()),
        "epochs": str(plain["trainer"]["max_epochs"]), "batch size": str(plain["dataset"]["batch_size"]),
        "optimiser": told(plain["optim"]["optimizer"]), "schedule": told(plain["optim"]["scheduler"]),
        "precision": str(plain["precision"]), "seed": str(plain["seed"]),
    }  # fmt: skip


def data(cfg: DictConfig) -> dict[str, str]:
    """Return {what: how} of the images."""
    shape = "x".join(map(str, cfg.dataset.image_shape))
    return {
        "dataset": f"{cfg.dataset.name}, {cfg.dataset.num_classes} classes, images of {shape} in [0, 1]",
        "augmentation": str(cfg.dataset.augment),
        "held out of the training part": f"{cfg.dataset.val_size} images, split seed {cfg.dataset.split_seed}",
    }


def provenance(run: Path) -> dict[str, str]:
    """Return what the run says of where it comes from; nothing if it does not."""
    path = run / "provenance.json"
    if not path.is_file():
        return {}
    about = json.loads(path.read_text())
    return {
        "command": f"`{about['command']}`",
        "revision": about["revision"] + (", changed" if about["dirty"] else ""),
        "versions": ", ".join(f"{package} {number}" for package, number in about["versions"].items()),
        "machine": ", ".join(f"{what} {value}" for what, value in about["host"].items()),
        "data": about["hashes"].get("data", ""),
    }


def told(node: Any) -> str:
    """Return a plain node as a constructor's call: what it is and with which values."""
    if isinstance(node, Mapping):
        inside = ", ".join(f"{key}={told(value)}" for key, value in node.items() if not str(key).startswith("_"))
        return f"{str(node.get('_target_', '')).rpartition('.')[2]}({inside})"
    if isinstance(node, list):
        return f"[{', '.join(map(told, node))}]"
    return str(node)

"""The network that a command line chooses: a run's, that of a file of weights, or one that comes with its own."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from omegaconf import DictConfig, OmegaConf

from fsr_lab.engine import build, checkpoints


def chosen_network(cfg: DictConfig, overrides: Sequence[str]) -> tuple[DictConfig, str, tuple[Path, str | None] | None]:
    """Return the config of the network that run= or weights= names, its name, and its weights, which average of them.

    Args:
        cfg: composed as for `fsr evaluate` or `fsr doctor`.
        overrides: of the command line, which win over what the run was trained with.

    Raises:
        ValueError: both are given, or neither and the network does not come with weights of its own.
    """
    options = cfg.model.get("options") or {}
    brings_its_own = cfg.model.get("pretrained") or options.get("pretrained") or "repository" in cfg.model
    if cfg.run is None and cfg.weights is None and brings_its_own:
        return cfg, cfg.label or cfg.model.name, None
    if (cfg.run is None) == (cfg.weights is None):
        raise ValueError("expected one of run=DIR (a run of fsr train) and weights=FILE, got both or neither")
    label = cfg.label
    if cfg.run is not None:
        cfg, path = with_run(cfg, overrides)
    else:
        path = Path(cfg.weights)
    kept = checkpoints.kept_weights(path)
    words = [path.stem, cfg.average or kept[0]] if len(kept) > 1 else [path.stem]
    name = f"{cfg.label} ({', '.join(words)})" if cfg.run else ", ".join([path.name, *words[1:]])
    return cfg, label or name, (path, cfg.average)


def with_run(cfg: DictConfig, overrides: Sequence[str]) -> tuple[DictConfig, Path]:
    """Return the config with the run's network, data and threat in it, and the checkpoint's path.

    What the command line says of them wins: `threat.eps=4/255` attacks a network outside its training radius.
    """
    run = Path(cfg.run)
    stored = build.stored_config(run)
    given = [text.lstrip("+").partition("=") for text in overrides]
    groups = {key for key, _, _ in given}
    values = [f"{key}={value}" for key, _, value in given if "." in key and "@" not in key]
    OmegaConf.set_struct(cfg, False)
    for section in ("model", "dataset", "defense", "threat"):
        if section not in groups:
            cfg[section] = stored[section]
    folder = Path(stored.dataset.folder)
    if "dataset" not in groups and folder.is_relative_to(stored.paths.data):
        # the data may have moved since, with paths.data
        cfg.dataset.folder = str(Path(cfg.paths.data) / folder.relative_to(stored.paths.data))
    cfg.label = cfg.label or stored.label
    if "name" in cfg and "name" not in groups:
        cfg.name = stored.get("name", cfg.name)  # trackers group an evaluation with the sweep of its run
    merged = cast(DictConfig, OmegaConf.merge(cfg, OmegaConf.from_dotlist(values)))
    return merged, checkpoints.checkpoint_path(run, cfg.checkpoint)

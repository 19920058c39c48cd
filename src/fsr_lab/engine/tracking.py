"""What a run's trackers are told: its config when they open, its records, pictures and files when it is done."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import DictConfig, OmegaConf

from fsr_lab.core.record import CLEAN, NOT_RUN, PAPER_FOUR, EvaluationRecord
from fsr_lab.engine import build, wandb_settings
from fsr_lab.engine.exhibits import Files, Images, Rows, shown
from fsr_lab.engine.tracker import Status, Tracker, close

ENSEMBLE = "ensemble"
"""The per-sample worst case of the paper's four attacks (Eq. 6)."""
COLUMNS = ("network", "threat", "attack", "n", "correct", "accuracy")


@contextmanager
def opened_trackers(cfg: DictConfig, run: Path, job: str) -> Iterator[list[Tracker]]:
    """Yield a tracker for each configured logger but the CSV's, and close them when the block ends in any way.

    Nothing of a tracker is built, and so nothing imported, before it is told something.

    Args:
        cfg: resolvable; `cfg.trackers` says how long they are waited for.
        run: the run directory.
        job: "train" or "evaluate".
    """
    about: Any = OmegaConf.to_container(cfg, resolve=True)
    patience = float(cfg.trackers.patience)
    trackers = [
        Tracker(
            name,
            partial(_started, node, about, run, job, patience),
            end=_ended,
            abandon=wandb_settings.leave_service_behind if _is_wandb(node) else None,
            capacity=cfg.trackers.capacity,
        )
        for name, node in build.tracker_nodes(cfg).items()
    ]
    status: Status = "failed"
    try:
        yield trackers
        status = "success"
    finally:
        close(trackers, status, patience)


def tell_results(trackers: Sequence[Tracker], records: Mapping[str, EvaluationRecord], folder: Path) -> None:
    """Tell what attacks have found: as numbers, as one table, and as the records themselves.

    Args:
        trackers: to tell.
        records: by their names; the first one's metrics are "test/...", another's "test/NAME/...".
        folder: where the records lie.
    """
    if not trackers or not records:
        return
    metrics: dict[str, float] = {}
    rows = []
    for place, (name, record) in enumerate(records.items()):
        for attack, correct in accuracies(record).items():
            prefix = f"test/{name}/" if place else "test/"
            key = f"{prefix}acc" if attack == CLEAN else f"{prefix}{attack}/robust_acc"
            metrics[key] = correct / len(record)
            rows.append((record.name, str(record.threat), attack, len(record), correct, correct / len(record)))
    paths = [folder / f"{name}{suffix}" for name in records for suffix in (".json", ".npz")]
    for tracker in trackers:
        tracker.log_metrics(metrics)
        tracker.tell(shown("test/robust_accuracies", Rows(COLUMNS, rows)))
        tracker.tell(shown("record", Files("evaluation-record", paths)))


def tell_samples(trackers: Sequence[Tracker], path: Path) -> None:
    """Show the images that a run keeps, clean and adversarial, each with its class and the predicted one.

    Args:
        trackers: to show them.
        path: `samples.npz` of the run; nothing is shown where there is none.
    """
    if not trackers or not path.is_file():
        return
    with np.load(path) as kept:
        arrays = dict(kept)
    for kind in ("clean", "adversarial"):
        said = zip(arrays["labels"], arrays[f"predicted_{kind}"], strict=True)
        images = Images(arrays[kind], [f"class {label}, predicted {predicted}" for label, predicted in said])
        for tracker in trackers:
            tracker.tell(shown(f"samples/{kind}", images))


def accuracies(record: EvaluationRecord) -> dict[str, int]:
    """Return how many samples withstood each attack, the paper's ensemble and each chain, if it is known of all."""
    found = {
        name: int(record.correct(name).sum())
        for name, row in zip(record.attacks, record.outcome, strict=True)
        if not (row == NOT_RUN).any()
    }
    if set(PAPER_FOUR) <= set(found):
        found[ENSEMBLE] = int(record.worst_case(PAPER_FOUR).sum())
    return found | {name: int(record.worst_case((CLEAN, *own)).sum()) for name, own in record.chains.items()}


def _started(node: dict[str, Any], about: dict[str, Any], run: Path, job: str, patience: float) -> Logger:
    """Build a logger and give it the config; runs in its thread."""
    if _is_wandb(node):
        node = wandb_settings.completed(node, about=about, run=run, job=job, patience=patience)
    logger = build.build_logger(node)
    logger.log_hyperparams(about)
    if isinstance(logger, WandbLogger):
        here = logger.experiment
        folder = Path(here.dir).parent
        where = f"offline, to upload: wandb sync {folder}" if here.offline else here.url
        sys.stderr.write(f"W&B: {where}\n")  # in one write, as other threads write, too
    return logger


def _ended(logger: Logger, status: Status) -> None:
    """Close what outlives the logger; runs in its thread."""
    if isinstance(logger, WandbLogger):
        logger.experiment.finish(exit_code=int(status != "success"))


def _is_wandb(node: Mapping[str, Any]) -> bool:
    return str(node.get("_target_", "")).endswith(".WandbLogger")

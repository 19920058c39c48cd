"""A run directory from beginning to end: fit, attack the kept checkpoints, leave what explains it."""

import gc
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from fsr_lab.core.crafting import judging
from fsr_lab.core.files import disk_errors_explained, remove_leftovers, write_atomically, write_text
from fsr_lab.core.provenance import Provenance
from fsr_lab.core.record import EvaluationRecord
from fsr_lab.core.suggest import unknown
from fsr_lab.core.types import Attack
from fsr_lab.dataset.base import ImageDataModule
from fsr_lab.engine import build
from fsr_lab.engine.checkpoints import CONFIG, ONLINE, WHICH, checkpoint_path, kept_weights, load_weights
from fsr_lab.engine.evaluating import check_settings, evaluate_weights
from fsr_lab.engine.launch import fit_in_ranks, ranks_wanted
from fsr_lab.engine.profile import StepProfiler
from fsr_lab.engine.tracker import Tracker
from fsr_lab.engine.tracking import opened_trackers, tell_results, tell_samples
from fsr_lab.engine.wandb_settings import RUN_ID
from fsr_lab.engine.watch import Watch

STATUS, SAMPLES, RECORDS = "status.json", "samples.npz", "records"
UNCOMPARED = (
    "callback", "chunk", "claim", "compile", "dataset.folder", "dataset.source", "early_exit", "evaluation",
    "keep_images", "label", "launcher", "ledger", "logger", "model.functional", "paths", "resume", "retry",
    "test_checkpoints", "test_samples", "trackers", "trainer",
)  # fmt: skip
"""Parts of a config that may change when a run is continued."""


def train(cfg: DictConfig, run: Path, *, command: str, overrides: Sequence[str] = ()) -> list[EvaluationRecord]:
    """Train what a config says into a run directory, then attack its checkpoints; continue what was begun.

    Args:
        cfg: composed and resolvable.
        run: the run directory; a checkpoint in it is continued unless `cfg.resume` is "never".
        command: the command line, for provenance.
        overrides: what the config was composed from, kept so that the run can be resumed by its folder alone.

    Returns:
        One record per kept checkpoint, and per average in it.

    Raises:
        ValueError: the directory holds a run of another configuration, or the config cannot work.
        TrainingDivergedError: the loss was not finite.
        InterruptedRunError: the process was asked to stop; a checkpoint was written.
    """
    _check(cfg)
    cfg.label = build.full_label(cfg)
    fresh = cfg.resume == "never"
    if not fresh and is_finished(cfg, run):
        return load_records(run)
    if not fresh:
        refuse_other_config(cfg, run)
    data = opened_data(cfg)
    # built early, so that what cannot work says so before anything is trained or cleared
    build.build_module(cfg, build.build_model(cfg))
    build.build_attacks(cfg)
    if ranks_wanted(cfg) == 1:
        build.build_trainer(cfg)
    if fresh:
        _clear(run)
    remove_leftovers(run)
    write_config(cfg, run)
    write_text(run / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(list(overrides))))
    about = Provenance.collect(command=command, seed=cfg.seed, hashes={"data": data.data_hash})
    number = len(list(run.glob("provenance*.json")))  # a continued run keeps word of where it began
    write_text(run / f"provenance{number or ''}.json", json.dumps(about.as_dict(), indent=1) + "\n")
    _mark(run, "running", cfg)
    with opened_trackers(cfg, run, "train") as trackers:
        if ranks_wanted(cfg) > 1:
            fit_in_ranks(run, ranks_wanted(cfg))
        else:
            fit(cfg, run, data, trackers)
        records = _test(cfg, run, data, command)
        if records:
            _keep_samples(cfg, run, data)
        _mark(run, "finished", cfg)
        tell_results(trackers, records, run / RECORDS)
        tell_samples(trackers, run / SAMPLES)
    return list(records.values())


def write_config(cfg: DictConfig, run: Path) -> None:
    """Keep the resolved config."""
    write_text(run / CONFIG, OmegaConf.to_yaml(OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))))


def fit(cfg: DictConfig, run: Path, data: ImageDataModule, trackers: Sequence[Tracker] = ()) -> None:
    """Train in this process, from the run's last checkpoint if there is one, telling trackers how it goes."""
    last = run / "checkpoints" / "last.ckpt"
    module = build.build_module(cfg, build.build_model(cfg))
    watch = [Watch(trackers, cfg.trackers.mask_images)] if trackers else []
    trainer = build.build_trainer(cfg, trackers, watch)
    try:
        with disk_errors_explained(run):
            trainer.fit(module, datamodule=data, ckpt_path=str(last) if last.is_file() else None)
        module.stop_if_diverged()
        if isinstance(trainer.profiler, StepProfiler):  # type: ignore[attr-defined]
            print(trainer.profiler.summary(), flush=True)  # type: ignore[attr-defined]
    except SystemExit as err:  # what Lightning makes of a second Ctrl-C
        raise KeyboardInterrupt from err
    finally:
        gc.collect()  # a module and its trainer refer to each other; a sweep would otherwise hold several networks


def opened_data(cfg: DictConfig) -> ImageDataModule:
    """Build the data module, prepare what is missing, open it."""
    data = build.build_data(cfg)
    data.prepare_data()
    data.setup()
    return data


def is_finished(cfg: DictConfig, run: Path) -> bool:
    """Tell whether the directory holds this very run, finished."""
    if read_status(run) != _status("finished", cfg):
        return False
    refuse_other_config(cfg, run)
    return True


def read_status(run: Path) -> Mapping[str, Any]:
    """Return what the run says of itself; empty if it never began."""
    path = run / STATUS
    return cast(Mapping[str, Any], json.loads(path.read_text())) if path.is_file() else {}


def load_records(folder: Path) -> list[EvaluationRecord]:
    """Read every record of a run directory."""
    return [EvaluationRecord.load(path) for path in sorted((folder / RECORDS).glob("*.json"))]


def _test(cfg: DictConfig, run: Path, data: ImageDataModule, command: str) -> dict[str, EvaluationRecord]:
    """Attack the kept checkpoints, averages and online weights; one that is the same as another shares its ledger."""
    records: dict[str, EvaluationRecord] = {}
    for path, words in _kept_networks(cfg, run):
        average = words[-1] if len(words) > 1 else ONLINE
        name = f"{cfg.label} ({', '.join(words)})"
        print(f"attacking {name}, {build.build_threat(cfg)}", file=sys.stderr, flush=True)
        record = evaluate_weights(cfg, (path, average), data, name=name, command=command, run=run)
        record.save(run / RECORDS, "_".join(words))
        records["_".join(words)] = record
    return records


def _kept_networks(cfg: DictConfig, run: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield the checkpoints to attack, each with what names its network: ["last"], or ["last", "ema"] of an average."""
    for which in () if cfg.trainer.fast_dev_run else cfg.test_checkpoints:
        if which == "best" and not (run / "checkpoints" / "best.ckpt").is_file():
            continue  # no validation chose one
        path = checkpoint_path(run, which)
        kept = kept_weights(path)
        yield from ((path, [which, weights] if len(kept) > 1 else [which]) for weights in kept)


def _keep_samples(cfg: DictConfig, run: Path, data: ImageDataModule, count: int = 8) -> None:
    """Keep a few clean and adversarial test images with their predictions, for the picture."""
    attacks = build.build_attacks(cfg)
    if not attacks:
        return
    name = "pgd20" if "pgd20" in attacks else next(iter(attacks))
    attack: Attack = attacks[name]
    model = build.build_model(cfg)
    load_weights(model, checkpoint_path(run, "last"))
    x, y = next(iter(data.test_batches(limit=count)))
    torch.manual_seed(cfg.seed)
    x_adv = attack(model, x, y)
    with judging(model) as deployed:
        predictions = [deployed(images).argmax(1).numpy() for images in (x, x_adv)]
    arrays: dict[str, Any] = {
        "clean": x.numpy(), "adversarial": x_adv.numpy(), "labels": y.numpy(), "attack": np.array(name),
        "predicted_clean": predictions[0], "predicted_adversarial": predictions[1],
    }  # fmt: skip
    write_atomically(run / SAMPLES, lambda stream: np.savez_compressed(stream, **arrays))


def _clear(run: Path) -> None:
    """Remove what an earlier run left, because resume=never asked for it."""
    for folder in ("checkpoints", "metrics", RECORDS, "tensorboard"):
        if (run / folder).is_dir():
            shutil.rmtree(run / folder)
    reports = ("page.html", "report.md", "table.csv", "table.json", "table.tex")
    for name in (SAMPLES, STATUS, RUN_ID, "curves.png", "samples.png", *reports):
        (run / name).unlink(missing_ok=True)
    for path in run.glob("provenance*.json"):
        path.unlink()


def _mark(run: Path, state: str, cfg: DictConfig) -> None:
    write_text(run / STATUS, json.dumps(_status(state, cfg)) + "\n")


def _status(state: str, cfg: DictConfig) -> dict[str, Any]:
    """Return what the run says of itself: how far it was to train, and how it was to be attacked."""
    tested = {key: cfg[key] for key in ("evaluation", "early_exit", "test_checkpoints", "test_samples", "chunk")}
    plain = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(tested), resolve=False))
    status = {"state": state, "max_epochs": cfg.trainer.max_epochs, "tested": plain}
    return status | ({"fast_dev_run": cfg.trainer.fast_dev_run} if cfg.trainer.fast_dev_run else {})


def _check(cfg: DictConfig) -> None:
    """Refuse now what would otherwise fail after the training."""
    check_settings(cfg)
    for which in cfg.test_checkpoints:
        if which not in WHICH:
            raise ValueError(unknown("checkpoint", which, WHICH))


def refuse_other_config(cfg: DictConfig, run: Path) -> None:
    """Refuse a directory that holds a run of another configuration.

    Raises:
        ValueError: as said; the message names what differs.
    """
    path = run / CONFIG
    if not path.is_file() or not (run / "checkpoints").is_dir():
        return
    stored = OmegaConf.load(path)
    differing = differences(OmegaConf.to_container(stored), OmegaConf.to_container(cfg, resolve=True))
    if cfg.optim.interval == "step" and stored.trainer.max_epochs != cfg.trainer.max_epochs:
        # a schedule by steps is laid out for their number, and cannot be lengthened
        differing.append(f"trainer.max_epochs: {stored.trainer.max_epochs} there, {cfg.trainer.max_epochs} here")
    if differing:
        more = f" and {len(differing) - 4} more" if len(differing) > 4 else ""
        raise ValueError(
            f"{run} holds a run of another configuration ({', '.join(differing[:4])}{more}); "
            "give this one another name=, or resume=never to start it afresh there"
        )


def differences(old: Any, new: Any, path: Sequence[str] = ()) -> list[str]:
    """Return what differs between two configs, "key: old there, new here" each, but for what may change."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [key for key in {**old, **new} if ".".join((*path, key)) not in UNCOMPARED]
        return [text for key in keys for text in differences(old.get(key), new.get(key), (*path, str(key)))]
    return [] if old == new else [f"{'.'.join(path)}: {old} there, {new} here"]

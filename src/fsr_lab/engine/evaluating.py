"""From a config and a file of weights to a record: on this process's device, or in shards over several."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn, cast

import torch
from omegaconf import DictConfig, OmegaConf

from fsr_lab.core.hashing import state_hash
from fsr_lab.core.record import EvaluationRecord
from fsr_lab.dataset.base import ImageDataModule
from fsr_lab.engine import build
from fsr_lab.engine.checkpoints import load_weights
from fsr_lab.engine.launch import ranks_wanted
from fsr_lab.evaluation.run import CODE, evaluate
from fsr_lab.model.defended import DefendedModel

EVERYTHING = "worst case"
"""The chain of all attacks that `early_exit=true` makes."""


def evaluate_weights(
    cfg: DictConfig,
    weights: tuple[Path, str | None] | None,
    data: ImageDataModule,
    *,
    name: str,
    command: str,
    run: Path,
    shard: tuple[int, int] | None = None,
) -> EvaluationRecord:
    """Attack a network with the config's evaluation on the config's test images, over `trainer.devices` processes.

    Args:
        cfg: with a network, its data, a threat, an evaluation, and where its ledger lies.
        weights: a checkpoint or a state dict, and which of its averages; None where the network comes with its own.
        data: opened.
        name: what a table calls the network.
        command: the command line, for the record.
        run: where the resolved config lies, for the other processes.
        shard: do this part only, in this process; the record holds its samples.
    """
    model = loaded_network(cfg, weights)
    about = network_digest(cfg)
    ledger = ledger_folder(cfg, model, data)
    if ledger is not None:
        print(f"ledger: {ledger}", file=sys.stderr, flush=True)
    devices = ranks_wanted(cfg)
    if ledger is None and (devices > 1 or shard is not None):
        raise ValueError("shards need a ledger to meet in; leave out ledger=none")
    if devices > 1 and shard is None:
        _evaluate_in_shards(run, weights, devices)
    device = best_device("cpu" if cfg.trainer.get("accelerator") == "cpu" else cfg.get("device", "auto"))
    model = model.to(device)
    return evaluate(
        model,
        data.test_batches(device, limit=cfg.test_samples),
        build.build_attacks(cfg, device),
        threat=build.build_threat(cfg),
        seed=cfg.seed,
        chains=chains(cfg),
        ledger=ledger,
        shard=shard or (0, 1),
        chunk=cfg.chunk,
        keep_images=cfg.keep_images,
        deep=is_deep(cfg) and shard is None,  # a shard's record is thrown away
        name=name,
        command=command,
        data_hash=data.data_hash,
        about=about,
    )


def loaded_network(cfg: DictConfig, weights: tuple[Path, str | None] | None) -> DefendedModel:
    """Build a config's network with its weights, if it does not come with its own, in eval mode."""
    model = build.build_model(cfg)
    if weights is not None:
        load_weights(model, *weights)
    return model.eval()


def chains(cfg: DictConfig) -> dict[str, list[str]]:
    """Return the evaluation's chains; with `early_exit` one over all attacks."""
    for name in ("early_exit", "keep_images"):
        if not isinstance(cfg[name], bool):
            raise ValueError(f"expected {name} to be true or false, got {cfg[name]!r}")
    if cfg.early_exit and cfg.evaluation.attacks:
        return {EVERYTHING: [str(attack) for attack in cfg.evaluation.attacks]}
    node = cfg.evaluation.get("chains") or {}
    return cast(dict[str, list[str]], OmegaConf.to_container(OmegaConf.create(node), resolve=True))


def is_deep(cfg: DictConfig) -> bool:
    """Tell whether the evaluation asks for a deep examination."""
    deep = cfg.evaluation.get("deep", False)
    if not isinstance(deep, bool):
        raise ValueError(f"expected evaluation.deep to be true or false, got {deep!r}")
    return deep


def ledger_folder(cfg: DictConfig, model: DefendedModel, data: ImageDataModule) -> Path | None:
    """Return where an evaluation's ledger lies: `cfg.ledger`, or a folder named after all that decides its cells.

    So the same evaluation finds its ledger again, whichever run or command it belongs to, and a network with other
    settings, other data, another eps or another version of this code gets another one.
    """
    if cfg.ledger in (None, "none"):
        return None
    if cfg.ledger != "auto":
        return Path(cfg.ledger)
    about = (
        network_digest(cfg), str(build.build_threat(cfg)), state_hash(model.state_dict()), data.data_hash,
        cfg.test_samples, cfg.seed, cfg.chunk, CODE, torch.__version__,
    )  # fmt: skip
    return Path(cfg.paths.ledgers) / hashlib.sha256(repr(about).encode()).hexdigest()[:16]


def network_digest(cfg: DictConfig) -> str:
    """Return what makes a network beside its weights: a temperature, a normalisation, a mask."""
    about = [OmegaConf.to_container(cfg[section], resolve=True) for section in ("model", "defense")]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def best_device(wanted: str = "auto") -> torch.device:
    """Return the device to evaluate on: the accelerator if there is one and the choice is left to us."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if wanted == "auto":
        return torch.device("cpu") if accelerator is None else accelerator
    return torch.device(wanted)


def shard_of(text: str) -> tuple[int, int]:
    """Read "0/3", the first of three shards.

    Raises:
        ValueError: it is something else.
    """
    index, _, count = str(text).partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ValueError(f"expected shard=i/k with i from 0 to k-1, such as shard=0/3, got {text!r}")
    return int(index), int(count)


def _evaluate_in_shards(run: Path, weights: tuple[Path, str | None] | None, count: int) -> None:
    """Run all shards as processes, each on its accelerator or its part of the cores; their cells meet in the ledger.

    Raises:
        RuntimeError: one failed; its message stands above. What all have found is kept.
    """
    threads = str(max(1, torch.get_num_threads() // count))
    accelerators = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    pinned = [device for device in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]
    visible = pinned or [str(index) for index in range(accelerators)]
    path, average = weights or ("", "")
    processes = []
    for index in range(count):
        own = {"OMP_NUM_THREADS": threads}
        if accelerators:
            own["CUDA_VISIBLE_DEVICES"] = visible[index % len(visible)]
        command = [sys.executable, "-m", "fsr_lab.engine.shard", str(run), f"{index}/{count}", str(path), average or ""]
        processes.append(subprocess.Popen(command, env=os.environ | own))
    with _terminating(processes):
        codes = [process.wait() for process in processes]
    if any(codes):
        raise RuntimeError(
            f"{sum(map(bool, codes))} of {count} shards failed: their messages stand above; "
            "the same command continues with what all have found"
        )


@contextmanager
def _terminating(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """End these processes when the block ends in any way, SIGTERM among them."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread, where Python takes no handlers
        before = None
    try:
        yield
    finally:
        for process in processes:
            process.terminate()  # those that ended do not mind
        for process in processes:
            process.wait()
        if before is not None:
            signal.signal(signal.SIGTERM, before)

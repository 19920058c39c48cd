"""From a config and a file of weights to a record: on this process's device, or in shards over several."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import cast

import torch
from omegaconf import DictConfig, OmegaConf

from fsr_lab.core.hashing import source_hash, state_hash
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
    model = build.build_model(cfg)
    if weights is not None:
        load_weights(model, *weights)
    ledger = ledger_folder(cfg, model, data)
    if ledger is not None:
        print(f"ledger: {ledger}", file=sys.stderr, flush=True)
    if (devices := ranks_wanted(cfg)) > 1 and shard is None:
        if ledger is None:
            raise ValueError("trainer.devices over 1 needs a ledger to meet in; leave out ledger=none")
        _evaluate_in_shards(run, weights, devices)
    device = best_device("cpu" if cfg.trainer.get("accelerator") == "cpu" else cfg.get("device", "auto"))
    model = model.to(device).eval()
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
        name=name,
        command=command,
        data_hash=data.data_hash,
    )


def chains(cfg: DictConfig) -> dict[str, list[str]]:
    """Return the evaluation's chains; with `early_exit` one over all attacks."""
    if cfg.early_exit:
        return {EVERYTHING: [str(attack) for attack in cfg.evaluation.attacks]}
    node = cfg.evaluation.get("chains") or {}
    return cast(dict[str, list[str]], OmegaConf.to_container(OmegaConf.create(node), resolve=True))


def ledger_folder(cfg: DictConfig, model: DefendedModel, data: ImageDataModule) -> Path | None:
    """Return where an evaluation's ledger lies: `cfg.ledger`, or a folder named after all that decides its cells.

    So the same evaluation finds its ledger again, whichever run or command it belongs to, and a network with other
    settings, other data, another eps or another version of this code gets another one.
    """
    if cfg.ledger == "none":
        return None
    if cfg.ledger != "auto":
        return Path(cfg.ledger)
    about = {key: OmegaConf.to_container(cfg[key], resolve=True) for key in ("model", "defense", "threat")}
    about |= {
        "weights": state_hash(model.state_dict()), "data": data.data_hash, "samples": cfg.test_samples,
        "seed": cfg.seed, "chunk": cfg.chunk, "code": source_hash(*CODE), "torch": torch.__version__,
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    return Path(cfg.paths.ledgers) / digest


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
    path, average = weights or ("", "")
    processes = []
    for index in range(count):
        own = {"CUDA_VISIBLE_DEVICES": str(index % accelerators)} if accelerators else {"OMP_NUM_THREADS": threads}
        command = [sys.executable, "-m", "fsr_lab.engine.shard", str(run), f"{index}/{count}", str(path), average or ""]
        processes.append(subprocess.Popen(command, env=os.environ | own))
    try:
        codes = [process.wait() for process in processes]
    finally:
        for process in processes:
            process.terminate()  # after a Ctrl-C or an error of ours; those that ended do not mind
    if any(codes):
        raise RuntimeError(
            f"{sum(map(bool, codes))} of {count} shards failed: their messages stand above; "
            "the same command continues with what all have found"
        )

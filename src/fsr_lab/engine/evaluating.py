"""From a config and a file of weights to a record: on this process's device, or in shards over several."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, cast

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from fsr_lab.core.files import check_folder
from fsr_lab.core.hashing import state_hash
from fsr_lab.core.record import CLEAN, EvaluationRecord
from fsr_lab.core.units import whole
from fsr_lab.dataset.base import ImageDataModule
from fsr_lab.engine import build
from fsr_lab.engine.checkpoints import load_weights
from fsr_lab.engine.launch import ranks_wanted
from fsr_lab.evaluation import sanity
from fsr_lab.evaluation.cell import cell_seed
from fsr_lab.evaluation.run import CODE, evaluate
from fsr_lab.model.defended import DefendedModel
from fsr_lab.modifier.recalibration import recalibrate

EVERYTHING = "worst case"
"""The chain of all attacks that `early_exit=true` makes."""


def check_settings(cfg: DictConfig) -> None:
    """Refuse at once what would otherwise fail once the data are read, or a network is trained.

    Raises:
        ValueError: a setting of the evaluation cannot be what it is.
    """
    whole("seed", cfg.seed)
    whole("chunk", cfg.chunk, 1)
    if cfg.test_samples is not None:
        whole("test_samples", cfg.test_samples, 1)
    whole("recalibrate.batches", OmegaConf.select(cfg, "recalibrate.batches", default=0))
    for name in ("early_exit", "keep_images"):
        if not isinstance(cfg[name], bool):
            raise ValueError(f"expected {name} to be true or false, got {cfg[name]!r}")
    sanity.check_threat(build.build_threat(cfg))
    _check_surrogates(cfg)
    device_of(cfg)
    in_shards = ranks_wanted(cfg) > 1 or cfg.get("shard") is not None
    if cfg.ledger in (None, "none"):
        if in_shards or cfg.keep_images:
            raise ValueError("shards meet in a ledger, and images are kept in one; leave out ledger=none")
    elif cfg.ledger != "auto":
        check_folder("ledger", Path(cfg.ledger))


def _check_surrogates(cfg: DictConfig) -> None:
    """Refuse kin of the network that is given and that no attack crafts on: it would change nothing, silently."""
    kin = OmegaConf.select(cfg, "surrogates", default={})
    given = {name: str(path) for name, path in kin.items() if path is not None}
    used = set(build.sources_of(OmegaConf.to_container(cfg.evaluation.attacks, resolve=True))) if given else set()
    for name, path in given.items():
        if path in used:
            continue
        raise ValueError(
            f"no attack of this evaluation crafts on surrogates.{name}={path}; evaluation=adaptive and attack=[a7] use "
            "plain, other_seed, without_sep and without_rec"
        )


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
        cfg: with a network, its data, a threat, an evaluation, and where its ledger lies; passes `check_settings`.
        weights: a checkpoint or a state dict, and which of its averages; None where the network comes with its own.
        data: opened.
        name: what a table calls the network.
        command: the command line, for the record.
        run: where the resolved config lies, for the other processes.
        shard: do this part only, in this process; the record holds its samples.
    """
    model = loaded_network(cfg, weights)
    about = network_digest(cfg)
    device = device_of(cfg)
    model = model.to(device)
    if batches := OmegaConf.select(cfg, "recalibrate.batches", default=0):
        recalibrate(model, adversarial_batches(cfg, model, data, batches))
        name = f"{name}, recalibrated"
    ledger = ledger_folder(cfg, model, data)
    if ledger is not None:
        print(f"ledger: {ledger}", file=sys.stderr, flush=True)
    devices = ranks_wanted(cfg)
    if devices > 1 and shard is None:
        _evaluate_in_shards(run, weights, devices)
    return evaluate(
        model,
        data.test_batches(device, limit=samples(cfg)),
        build.build_attacks(cfg, device),
        threat=build.build_threat(cfg),
        seed=cfg.seed,
        chains=chains(cfg),
        after=after(cfg),
        limits=_plain(cfg, "limits"),
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


def check_attacked(record: EvaluationRecord, cfg: DictConfig) -> None:
    """Refuse a record of the clean images alone where attacks were asked for: its table tells nothing of robustness.

    Raises:
        ValueError: none of the attacks concerns the network.
    """
    if cfg.evaluation.attacks and record.attacks == (CLEAN,):
        reasons = "; ".join(finding.text for finding in record.findings if finding.verdict == "skip")
        raise ValueError(
            f"no attack was run, as none of those asked for concerns this network: {reasons}; give attack=[...] or "
            "evaluation=NAME with some that do"
        )


def loaded_network(cfg: DictConfig, weights: tuple[Path, str | None] | None) -> DefendedModel:
    """Build a config's network with its weights, if it does not come with its own, in eval mode."""
    model = build.build_model(cfg)
    if weights is not None:
        load_weights(model, *weights)
    return model.eval()


def adversarial_batches(cfg: DictConfig, model: DefendedModel, data: ImageDataModule, count: int) -> Iterator[Tensor]:
    """Yield the first training batches of a seed, attacked by `cfg.recalibrate.attack` as the model is by then.

    The caller's random state is given back after each.
    """
    attack = build.build_attack(cfg.recalibrate.attack)
    device = next(model.parameters()).device
    loader = cast(Iterable[tuple[Tensor, Tensor]], data.train_dataloader())
    for place, (x, y) in enumerate(islice(loader, count)):
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(cell_seed(cfg.seed, "recalibrate", place))
            x_adv = attack(model, x.to(device), y.to(device))
        yield x_adv


def chains(cfg: DictConfig) -> dict[str, list[str]]:
    """Return the evaluation's chains; with `early_exit` one over all attacks."""
    if cfg.early_exit and cfg.evaluation.attacks:
        return {EVERYTHING: [str(attack) for attack in cfg.evaluation.attacks]}
    return _plain(cfg, "chains")


def after(cfg: DictConfig) -> dict[str, list[str]]:
    """Return what the evaluation's chains wait for; with `early_exit` there is one chain, which waits for nothing."""
    return {} if cfg.early_exit else _plain(cfg, "after")


def samples(cfg: DictConfig) -> int | None:
    """Return how many test images, from the first: the evaluation's `samples` or `test_samples`, the smaller."""
    given = {"test_samples": cfg.test_samples, "evaluation.samples": cfg.evaluation.get("samples")}
    return min((whole(name, count, 1) for name, count in given.items() if count is not None), default=None)


def _plain(cfg: DictConfig, key: str) -> dict[str, Any]:
    node = cfg.evaluation.get(key)  # where it stands: interpolations reach for the rest of the config
    return cast(dict[str, Any], OmegaConf.to_container(node, resolve=True)) if node else {}


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
        samples(cfg), cfg.seed, cfg.chunk, CODE, torch.__version__,
    )  # fmt: skip
    return Path(cfg.paths.ledgers) / hashlib.sha256(repr(about).encode()).hexdigest()[:16]


def network_digest(cfg: DictConfig) -> str:
    """Return what makes a network beside its weights: a temperature, a normalisation, a mask."""
    about = [OmegaConf.to_container(cfg[section], resolve=True) for section in ("model", "defense")]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def device_of(cfg: DictConfig) -> torch.device:
    """Return the device that a config evaluates on: that of its training, or the one that it names."""
    return best_device("cpu" if cfg.trainer.get("accelerator") == "cpu" else cfg.get("device", "auto"))


def best_device(wanted: str = "auto") -> torch.device:
    """Return the device to evaluate on: the accelerator if there is one and the choice is left to us.

    Raises:
        ValueError: this machine, or this torch, has no such device.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if wanted == "auto":
        return torch.device("cpu") if accelerator is None else accelerator
    there = ["cpu"] if accelerator is None else ["cpu", accelerator.type]
    kind, _, index = str(wanted).partition(":")
    if kind not in there or (index and not (index.isdecimal() and int(index) < torch.accelerator.device_count())):
        raise ValueError(
            f"expected device to be auto or one of {there}, which torch {torch.__version__} finds here, got {wanted}; "
            "a GPU needs a driver, and a torch build for it"
        )
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

"""Which processor a job of this machine's worker processes computes on: GPUs of its own, or a few threads."""

import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

VISIBLE = "CUDA_VISIBLE_DEVICES"
GPU = ("gpu", "cuda")
"""What Lightning calls an accelerator that must be there, unlike auto."""

_LEASED: list[FileLock] = []
"""What this process holds until it dies: a worker's CUDA cannot move to another GPU once it has started."""


def settle(cfg: DictConfig) -> None:
    """Give this process what a job's launcher says, before anything computes: GPUs of its own, or its threads.

    Slurm and Ray give a job its GPUs themselves.

    Raises:
        ValueError: more GPUs are asked for than there are.
    """
    options = cfg.get("launcher") or {}
    threads = options.get("cores", options.get("cpus"))
    if threads is None:
        return  # in the process of the sweep
    devices = visible_gpus() if "cores" in options and wants_gpu(cfg) else ()
    if devices and not _LEASED:
        mine = lease(devices, options["gpus"], lease_folder())
        os.environ[VISIBLE] = ",".join(mine)
        print(f"on GPU {', '.join(mine)}", file=sys.stderr, flush=True)
    elif not devices:
        import torch

        torch.set_num_threads(threads)


def check_gpus(cfg: DictConfig) -> None:
    """Refuse a job that is to compute on other GPUs than its launcher gives it, or this machine has.

    Raises:
        ValueError: as said.
    """
    devices, accelerator = (OmegaConf.select(cfg, f"trainer.{key}") for key in ("devices", "accelerator"))
    if not isinstance(devices, int) or accelerator == "cpu":
        return
    options = cfg.get("launcher") or {}
    if "gpus" not in options:  # in the process of the sweep
        if accelerator in GPU and devices > (there := len(visible_gpus())):
            raise ValueError(f"a job asks for {devices} GPUs, and this machine has {there}; give trainer.devices")
        return
    given = math.ceil(options["gpus"] or 0)  # Ray gives parts of one, too
    if given > devices or (given < devices and accelerator in GPU):
        raise ValueError(
            f"a job computes on {devices} GPUs, and its launcher gives it {given}; "
            "let trainer.devices and launcher.gpus agree"
        )


def slots(cfg: DictConfig) -> int:
    """Return how many jobs this machine runs at a time.

    Raises:
        ValueError: a job asks for more GPUs or cores than there are.
    """
    if wants_gpu(cfg):
        per_job, there, what = cfg.launcher.gpus, len(visible_gpus()), "GPUs"
    else:
        per_job, there, what = cfg.launcher.cores, len(os.sched_getaffinity(0)), "cores"
    if not isinstance(per_job, int) or per_job < 1:
        raise ValueError(f"expected launcher.{what.lower()} to be a whole number of at least 1, got {per_job}")
    if per_job > there:
        raise ValueError(f"a job asks for {per_job} {what}, and this machine has {there}; give launcher.{what.lower()}")
    return there // per_job


def wants_gpu(cfg: DictConfig) -> bool:
    """Tell whether a job computes on GPUs: where its trainer says so, or leaves it open and there are some."""
    accelerator = cfg.trainer.get("accelerator", "auto")
    return accelerator in GPU or (accelerator == "auto" and bool(visible_gpus()))


def visible_gpus() -> tuple[str, ...]:
    """Return this machine's GPUs by what CUDA_VISIBLE_DEVICES calls them, those only that it lets us see."""
    if VISIBLE in os.environ:
        return tuple(name.strip() for name in os.environ[VISIBLE].split(",") if name.strip())
    import torch

    return tuple(str(number) for number in range(torch.cuda.device_count()))


def lease(devices: Sequence[str], count: int, folder: Path) -> tuple[str, ...]:
    """Take `count` of the devices for this process alone, until it dies; wait where too few are free.

    Raises:
        ValueError: there are not so many.
    """
    if count > len(devices):
        raise ValueError(f"a job asks for {count} GPUs, and this machine has {len(devices)}; give launcher.gpus")
    folder.mkdir(parents=True, exist_ok=True)
    is_told = False
    while True:
        with FileLock(folder / "leases.lock"):  # two that each hold a part of what they need would wait for ever
            taken = _free(devices, count, folder)
        if taken:
            _LEASED.extend(taken.values())
            return tuple(taken)
        if not is_told:
            print(f"waiting for {count} of the GPUs {', '.join(devices)}", file=sys.stderr, flush=True)
            is_told = True
        time.sleep(0.5)


def lease_folder() -> Path:
    """Return where this user's processes on this machine keep their leases, whatever sweep they are of."""
    return Path(tempfile.gettempdir()) / f"fsr-lab-{os.getuid()}"


def _free(devices: Sequence[str], count: int, folder: Path) -> dict[str, FileLock]:
    """Return `count` devices with their locks, taken; none where fewer are free."""
    taken: dict[str, FileLock] = {}
    for device in devices:
        lock = FileLock(folder / f"gpu-{device.replace('/', '_')}.lock")
        with suppress(Timeout):
            lock.acquire(timeout=0)
            taken[device] = lock
        if len(taken) == count:
            return taken
    for lock in taken.values():
        lock.release()
    return {}

"""What a sweep asks of Slurm, checked before any job is submitted."""

import math
import re
import shutil
import subprocess

from omegaconf import DictConfig

from fsr_lab.core.suggest import unknown

TARGET = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"


def check_slurm(cfg: DictConfig) -> None:
    """Refuse what Slurm here would not run; some of it, it would let wait for ever.

    Args:
        cfg: a sweep's.

    Raises:
        ValueError: there is no Slurm, no partition of that name, no node of it with so many GPUs or whatever else is
            asked for, or it ends jobs sooner.
    """
    wanted = cfg.hydra.launcher
    if not shutil.which("sbatch"):
        raise ValueError("launcher=slurm needs sbatch, which is not on this machine; start the sweep on a login node")
    asked = subprocess.run(["sinfo", "--noheader", "--format=%P|%l|%G"], capture_output=True, text=True, check=False)
    if asked.returncode:
        raise ValueError(f"Slurm does not answer: {_last_line(asked.stderr)}; try again when sinfo does")
    gpus: dict[str, int] = {}
    minutes: dict[str, float] = {}
    default = []
    for mark, limit, resources in (line.split("|", 2) for line in asked.stdout.splitlines()):
        partition = mark.removesuffix("*")
        default += [partition] if mark.endswith("*") else []
        counts = [int(count) for count in re.findall(r"gpu(?::[^:,(]+)?:(\d+)", resources)]
        gpus[partition] = max(gpus.get(partition, 0), sum(counts))
        minutes[partition] = _minutes(limit)
    chosen = default if wanted.partition is None else str(wanted.partition).split(",")
    if not chosen:
        raise ValueError(f"this Slurm has no default partition; give launcher.partition, of {sorted(gpus)}")
    for partition in chosen:
        if partition not in gpus:
            raise ValueError(unknown("partition of this Slurm", partition, sorted(gpus)))
    where = f"partition {','.join(dict.fromkeys(chosen))}"
    if (wanted.gpus_per_node or 0) > (most := max(gpus[name] for name in chosen)):
        raise ValueError(
            f"a job asks for {wanted.gpus_per_node} GPUs, and a node of {where} has {most} at most; give launcher.gpus"
        )
    if wanted.timeout_min > (longest := max(minutes[name] for name in chosen)):
        raise ValueError(
            f"a job asks for {wanted.timeout_min} minutes, and {where} gives {longest:g} at most; give "
            "launcher.minutes, after which a job is queued again and goes on"
        )
    tried = subprocess.run(_trial(wanted), capture_output=True, text=True, check=False)
    if tried.returncode:
        raise ValueError(
            f"Slurm would run no such job ({_last_line(tried.stderr)}); give other launcher.cpus, launcher.memory_gb, "
            "launcher.constraint, launcher.account or launcher.partition"
        )


def _trial(wanted: DictConfig) -> list[str]:
    """Return the command that asks Slurm whether it would ever run such a job, and submits none."""
    options = {
        "partition": wanted.partition, "account": wanted.account, "qos": wanted.qos, "constraint": wanted.constraint,
        "gpus-per-node": wanted.gpus_per_node, "cpus-per-task": wanted.cpus_per_task, "mem": f"{wanted.mem_gb}GB",
        "time": wanted.timeout_min, "nodes": wanted.nodes, "ntasks-per-node": wanted.tasks_per_node,
        **{str(key).replace("_", "-"): value for key, value in (wanted.additional_parameters or {}).items()},
    }  # fmt: skip
    given = {key: value for key, value in options.items() if value is not None and value is not False}
    words = [f"--{key}" if value is True else f"--{key}={value}" for key, value in given.items()]
    return ["sbatch", "--test-only", *words, "--wrap=true"]


def _minutes(limit: str) -> float:
    """Return a time limit of sinfo, [[days-]hours:]minutes:seconds, in minutes."""
    if not limit[:1].isdigit():
        return math.inf
    days, _, clock = limit.rpartition("-")
    seconds = 0
    for part in clock.split(":"):
        seconds = 60 * seconds + int(part)
    return 1440 * int(days or 0) + seconds / 60


def _last_line(text: str) -> str:
    line = next((line for line in reversed(text.splitlines()) if line.strip()), "no reason given")
    return line.removeprefix("sbatch: error: ").removeprefix("allocation failure: ")

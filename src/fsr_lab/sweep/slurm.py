"""A sweep's jobs under Slurm: checked before they are submitted, and queued again when their time is up."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from omegaconf import DictConfig

from fsr_lab.core.suggest import unknown

TARGET = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"
TIME_IS_UP = signal.SIGUSR2
"""What submitit has Slurm send before it kills a job."""


def check_slurm(cfg: DictConfig) -> None:
    """Refuse what Slurm here would not run.

    Args:
        cfg: a sweep's.

    Raises:
        ValueError: there is no Slurm, no partition of that name, or no node of it with so many GPUs.
    """
    if not shutil.which("sbatch"):
        raise ValueError("launcher=slurm needs sbatch, which is not on this machine; start the sweep on a login node")
    asked = subprocess.run(["sinfo", "--noheader", "--format=%R|%G"], capture_output=True, text=True, check=False)
    if asked.returncode:
        raise ValueError(f"Slurm does not answer: {asked.stderr.strip().splitlines()[-1]}; try again when sinfo does")
    gpus: dict[str, int] = {}
    for partition, resources in (line.split("|", 1) for line in asked.stdout.splitlines()):
        counts = [int(count) for count in re.findall(r"gpu(?::[^:,(]+)?:(\d+)", resources)]
        gpus[partition] = max(gpus.get(partition, 0), sum(counts))
    wanted = cfg.hydra.launcher.partition
    partitions = gpus if wanted is None else str(wanted).split(",")
    for partition in partitions:
        if partition not in gpus:
            raise ValueError(unknown("partition of this Slurm", partition, sorted(gpus)))
    per_node, most = cfg.hydra.launcher.gpus_per_node or 0, max(gpus[partition] for partition in partitions)
    if per_node > most:
        where = f"partition {wanted}" if wanted is not None else "this Slurm"
        raise ValueError(
            f"a job asks for {per_node} GPUs, and a node of {where} has {most} at most; give launcher.gpus"
        )


def wait_for_array(sweep: Path) -> None:
    """Wait until Slurm has none of a sweep's jobs any more: one that was cancelled ends no other."""
    numbers = {path.name.partition("_")[0] for path in (sweep / ".submitit").glob("[0-9]*")}
    while numbers:
        command = ["squeue", "--noheader", "--format=%i", f"--jobs={','.join(sorted(numbers))}"]
        asked = subprocess.run(command, capture_output=True, text=True, check=False)
        if not asked.stdout.strip():  # of jobs long gone squeue knows nothing, which it calls an error
            return
        time.sleep(5)


class Requeue:
    """submitit's answer to Slurm's word that the time is up: the job is queued again, and this process ends.

    Training calls it once a checkpoint is written; elsewhere it comes at once.

    Attributes:
        is_done: whether it is queued.
    """

    def __init__(self, note: Callable[[], None], requeue: Callable[[int, FrameType | None], None]) -> None:
        self.is_done = self._is_asked = False
        self._note, self._requeue = note, requeue

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Answer a signal, the first.

        Raises:
            SystemExit: it is queued.
            RuntimeError: it has been out of time too often.
        """
        if self._is_asked:
            return
        self._is_asked = True
        print("Slurm: the time is up", file=sys.stderr, flush=True)
        self._note()  # first, as the new attempt may begin before this one has ended
        try:
            self._requeue(number, frame)
        except SystemExit:
            self.is_done = True
            raise
        except Exception as err:  # submitit's own
            again = "retry=true goes on with it; give more launcher.resubmissions or launcher.minutes"
            raise RuntimeError(f"{err} {again}") from err


@contextmanager
def requeueing(note: Callable[[], None]) -> Iterator[Requeue | None]:
    """Let a job of submitit be noted before it is queued again; yield None in another process.

    Args:
        note: says in the job's directory that it is queued.
    """
    before = signal.getsignal(TIME_IS_UP)
    if "SUBMITIT_FOLDER" not in os.environ or not callable(before):
        yield None
        return
    requeue = Requeue(note, before)
    signal.signal(TIME_IS_UP, requeue)
    try:
        yield requeue
    finally:
        signal.signal(TIME_IS_UP, before)

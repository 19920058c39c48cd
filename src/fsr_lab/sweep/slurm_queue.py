"""A sweep's jobs that Slurm has, waiting or running, whichever process submitted them: never twice, and waited for."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig

from fsr_lab.core.files import write_text
from fsr_lab.session import one_line

FOLDER, LIST = ".submitit", "jobs.json"
"""In a sweep's folder: a folder per process that submits, with the list of its runs. submitit adds a folder per job,
called by its number: 12 alone, 12_0 in an array, where the second number is the place in the list."""
PAUSE_SECONDS = 5


def own_folder(cfg: DictConfig, sweep: Path) -> Path:
    """Return the folder of what this process submits, in which submitit will keep its files."""
    folder = sweep / FOLDER / f"{time.time_ns()}_{os.getpid()}"
    cfg.hydra.launcher.submitit_folder = f"{folder}/%j"
    return folder


def in_hand(sweep: Path) -> dict[str, Path | None]:
    """Return {number: run} of the jobs that Slurm has; None is that of a study, which keeps no list.

    Raises:
        ValueError: Slurm does not answer.
    """
    known: dict[str, Path | None] = {}
    for folder in (sweep / FOLDER).glob("*/"):
        runs = json.loads((folder / LIST).read_text()) if (folder / LIST).is_file() else None
        for number in _numbers(folder):
            known[number] = None if runs is None else sweep / runs[int(number.partition("_")[2] or 0)]
    if not known:
        return {}
    command = ["squeue", f"--user={os.getuid()}", "--array", "--noheader", "--format=%i"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    if asked.returncode:
        raise ValueError(f"Slurm does not answer: {asked.stderr.strip()}; try again when squeue does")
    there = set(asked.stdout.split())
    return {number: run for number, run in known.items() if number in there}


def submit(runs: Sequence[Path], sweep: Path, folder: Path, launch: Callable[[], object]) -> None:
    """Submit runs as one array, and wait until Slurm has no job of the sweep any more.

    Args:
        runs: in the order in which they are launched; with none, the jobs of other processes are waited for.
        sweep: the sweep's folder.
        folder: of this process, for submitit.
        launch: submits, and waits for what it has submitted.

    Raises:
        Exception: Slurm has taken none.
    """
    others = len(in_hand(sweep))
    if others:
        print(f"Slurm has {others} of these jobs already, which are not submitted again but waited for", flush=True)
    if runs:
        write_text(folder / LIST, json.dumps([run.relative_to(sweep).as_posix() for run in runs], indent=1) + "\n")
        try:
            launch()
        except Exception as err:  # submitit's own, of the first job that Slurm has no more and that left no result
            if not _numbers(folder):
                raise
            print(f"fsr: a job was lost ({one_line(err)})", file=sys.stderr, flush=True)
            others += 1
    if others:
        wait(sweep)


def wait(sweep: Path) -> None:
    """Wait until Slurm has none of a sweep's jobs any more, even while it does not answer."""
    is_told = False
    while True:
        try:
            if not in_hand(sweep):
                return
        except ValueError as err:
            if not is_told:
                print(f"fsr: {err}; waiting", file=sys.stderr, flush=True)
            is_told = True
        time.sleep(PAUSE_SECONDS)


@contextmanager
def leaving_jobs(sweep: Path) -> Iterator[None]:
    """Say what becomes of the jobs when the process that waits for them is stopped."""
    try:
        yield
    except KeyboardInterrupt:
        if numbers := sorted({number.partition("_")[0] for number in in_hand(sweep)}):
            print(f"Slurm goes on with the jobs {' '.join(numbers)}; scancel ends them", file=sys.stderr, flush=True)
        raise


def _numbers(folder: Path) -> list[str]:
    """Return the numbers of the jobs that were submitted from a folder."""
    return [path.name for path in folder.glob("[0-9]*") if path.is_dir()]

"""A sweep's index.csv: a row per job, derived from the jobs' directories and rewritten whenever one of them changes."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from fsr_lab.arguments import key_of
from fsr_lab.core.files import write_text
from fsr_lab.engine.lock import NO_LOCKS, is_held
from fsr_lab.report.sweep import FIXED, INDEX
from fsr_lab.sweep.job import INTERRUPTED, JOB, RUNNING, Job

LOCK = ".index.lock"


def is_sweep(folder: Path) -> bool:
    """Tell whether a folder is that of a sweep."""
    return (folder / INDEX).is_file()


def refresh(sweep: Path, also: Iterable[Path] = (), *, search: bool = False) -> dict[Path, Job]:
    """Write the index anew and return {directory: job} as of now, in the order of their numbers.

    Args:
        sweep: the sweep's folder.
        also: directories of jobs that the index may not know yet.
        search: look for jobs in all folders below, where the index itself may be lost.
    """
    sweep = sweep.absolute()
    with _alone(sweep):
        runs = dict.fromkeys([*_listed(sweep), *(run.absolute() for run in also)])
        if search or not runs:
            runs |= dict.fromkeys(path.parent for path in sorted(sweep.glob(f"**/{JOB}")))
        jobs = {run: job for run in runs if (job := current(run)) is not None}
        jobs = dict(sorted(jobs.items(), key=lambda item: item[1].number))
        write_text(sweep / INDEX, table(sweep, jobs))
    return jobs


def current(run: Path) -> Job | None:
    """Return a job as it is now: one whose process was killed is interrupted, whatever it last wrote."""
    job = Job.read(run)
    if job is not None and job.state == RUNNING and not is_held(run):
        again = Job.read(run)  # it may have ended between the two looks
        return replace(job, state=INTERRUPTED, error="its process was killed") if again == job else again
    return job


def table(sweep: Path, jobs: dict[Path, Job]) -> str:
    """Return the index's text: what is known of every job, its overrides a column each, its results."""
    overrides = {run: _by_key(job.overrides) for run, job in jobs.items()}
    keys = dict.fromkeys(key for words in overrides.values() for key in words)
    results = sorted({name for job in jobs.values() for name in job.results})
    stream = io.StringIO()
    writer = csv.DictWriter(stream, [*FIXED, *keys, *results], lineterminator="\n", restval="")
    writer.writeheader()
    for run, job in jobs.items():
        fixed = {
            "job": job.number, "directory": run.relative_to(sweep).as_posix(), "state": job.state,
            "started": job.started, "ended": job.ended,
            "seconds": "" if job.seconds is None else f"{job.seconds:.1f}", "error": job.error,
        }  # fmt: skip
        writer.writerow(overrides[run] | {name: f"{value:.4f}" for name, value in job.results.items()} | fixed)
    return stream.getvalue()


@contextmanager
def _alone(sweep: Path) -> Iterator[None]:
    """Keep other writers of the index out; where a file system has no locks, what comes last is right soon after."""
    lock = FileLock(sweep / LOCK, fallback_to_soft=False)  # a soft lock would outlive a kill, and stop the sweep
    try:
        lock.acquire()
    except OSError as err:
        if err.errno not in NO_LOCKS:
            raise
    try:
        yield
    finally:
        lock.release()


def _listed(sweep: Path) -> list[Path]:
    """Return the directories that the index names."""
    if not is_sweep(sweep):
        return []
    with (sweep / INDEX).open(newline="") as stream:
        return [sweep / row["directory"] for row in csv.DictReader(stream)]


def _by_key(overrides: Sequence[str]) -> dict[str, str]:
    """Return {what an override is about: its value}; Hydra's own, about folders and launchers, are left out."""
    words = [word for word in overrides if not word.lstrip("+~").startswith("hydra.")]
    return {key_of(word): word.partition("=")[2] for word in words}

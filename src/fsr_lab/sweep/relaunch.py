"""Planned jobs under a launcher whose worker processes may die: one that does takes no other job with it."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from fsr_lab.session import BAD_INPUT, one_line
from fsr_lab.sweep.index import current
from fsr_lab.sweep.job import FAILED, INTERRUPTED, QUEUED, Job
from fsr_lab.sweep.plan import Planned

ATTEMPTS = 2
"""How often a job may lose its process in one sweep before it counts as failed."""


def run_jobs(due: Sequence[Planned], start: Callable[[Sequence[Planned]], object]) -> None:
    """Run jobs, and once more those that a worker's death took with it; who dies twice has failed.

    Args:
        due: the jobs.
        start: has the launcher run some of them, and raises when it loses a worker.

    Raises:
        Exception: the launcher could not start any job.
    """
    earlier = {job.run: _attempts(current(job.run)) for job in due}
    while due:
        try:
            start(due)
            return
        except Exception as err:
            seen = {job.run: found for job in due if (found := current(job.run)) is not None}
            lost = {run: job for run, job in seen.items() if job.state == INTERRUPTED}
            if not lost:
                raise
            print(f"fsr: a worker process was lost ({one_line(err)})", file=sys.stderr, flush=True)
            for run, job in lost.items():
                if (count := job.attempts - earlier[run]) >= ATTEMPTS:
                    text = f"its process was killed {count} times; is there enough memory?"
                    job.over(FAILED, code=BAD_INPUT, error=text).write(run)
            due = [job for job in due if _is_left(job.run)]


def _attempts(job: Job | None) -> int:
    return 0 if job is None else job.attempts


def _is_left(run: Path) -> bool:
    job = current(run)
    return job is not None and job.state in (QUEUED, INTERRUPTED)

"""Planned jobs under a launcher whose worker processes may die: one that does takes no other job with it."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from fsr_lab.session import BAD_INPUT, one_line
from fsr_lab.sweep.index import current
from fsr_lab.sweep.job import FAILED, INTERRUPTED, QUEUED, Job
from fsr_lab.sweep.plan import Planned

ATTEMPTS = 2
"""How often a job may lose its process in one sweep, the last time with no other beside it, before it has failed."""


def run_jobs(due: Sequence[Planned], start: Callable[[Sequence[Planned]], object]) -> None:
    """Run jobs, and once more those that a worker's death took with it; who dies twice by itself has failed.

    A pool that loses a worker ends the others, too. So those that were lost twice in company run one by one: the next
    death is then that job's own.

    Args:
        due: the jobs.
        start: has the launcher run some of them, and raises when it loses a worker.

    Raises:
        Exception: the launcher could not start any job.
    """
    earlier = {job.run: _attempts(current(job.run)) for job in due}

    def lost(jobs: Sequence[Planned]) -> dict[Path, int]:
        """Run jobs, and return how often those that lost their process now have lost it in this sweep."""
        before = {job.run: _attempts(current(job.run)) for job in jobs}
        try:
            start(jobs)
        except Exception as err:
            seen = {job.run: found for job in jobs if (found := current(job.run)) is not None}
            gone = {run: job.attempts - earlier[run] for run, job in seen.items()
                    if job.state == INTERRUPTED and job.attempts > before[run]}  # fmt: skip
            if not gone:
                raise
            print(f"fsr: a worker process was lost ({one_line(err)})", file=sys.stderr, flush=True)
            return gone
        return {}

    while due and (deaths := lost(due)):
        for job in due:
            if deaths.get(job.run, 0) >= ATTEMPTS:
                count = deaths[job.run] if len(deaths) == 1 else lost([job]).get(job.run)
                if count is not None:
                    _fail(job.run, count)
        due = [job for job in due if _is_left(job.run)]


def _fail(run: Path, count: int) -> None:
    job = current(run)
    if job is not None:
        text = f"its process was killed {count} times; is there enough memory?"
        job.over(FAILED, code=BAD_INPUT, error=text).write(run)


def _attempts(job: Job | None) -> int:
    return 0 if job is None else job.attempts


def _is_left(run: Path) -> bool:
    job = current(run)
    return job is not None and job.state in (QUEUED, INTERRUPTED)

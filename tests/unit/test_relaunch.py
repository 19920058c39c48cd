"""Worker processes that die: their jobs run once more, and who dies twice in one sweep has failed."""

import pytest

from fsr_lab.sweep.job import FAILED, FINISHED, Job
from fsr_lab.sweep.plan import Planned
from fsr_lab.sweep.relaunch import run_jobs


@pytest.fixture
def planned(tmp_path):
    """Return the function that plans jobs by name, each begun five times in earlier sweeps."""

    def planning(*names):
        for number, name in enumerate(names):
            Job(number=number, overrides=(), attempts=5).write(tmp_path / name)
        return [Planned(tmp_path / name, (), True) for name in names]

    return planning


def worker(*deadly):
    """Return a launcher that runs jobs until one whose turn it is to die, and the names of what it began."""
    left, begun = list(deadly), []

    def start(jobs):
        for job in jobs:
            begun.append(job.run.name)
            now = Job.read(job.run).begun()
            now.write(job.run)  # and holds no lock, as one whose process is gone
            if job.run.name in left:
                left.remove(job.run.name)
                raise RuntimeError("a worker died")
            now.over(FINISHED).write(job.run)

    return start, begun


def test_a_job_that_lost_its_process_runs_once_more_and_the_others_go_on(planned, capsys):
    jobs = planned("a", "b", "c")
    start, begun = worker("b")
    run_jobs(jobs, start)
    assert begun == ["a", "b", "b", "c"]
    assert [Job.read(job.run).state for job in jobs] == [FINISHED] * 3
    assert "fsr: a worker process was lost (a worker died)" in capsys.readouterr().err


def test_who_dies_twice_has_failed(planned):
    jobs = planned("a", "b")
    start, begun = worker("a", "a", "a")
    run_jobs(jobs, start)
    assert begun == ["a", "a", "b"]
    failed, other = (Job.read(job.run) for job in jobs)
    assert (failed.state, failed.code, other.state) == (FAILED, 2, FINISHED)
    assert failed.error == "its process was killed 2 times; is there enough memory?"


def pool(deadly):
    """Return a launcher that begins all jobs at once, and ends them all when the deadly one is among them."""
    begun = []

    def start(jobs):
        names = [job.run.name for job in jobs]
        begun.append("".join(names))
        running = {job.run: Job.read(job.run).begun() for job in jobs}
        for run, job in running.items():
            job.write(run)
        if deadly in names:
            raise RuntimeError("a worker died")
        for run, job in running.items():
            job.over(FINISHED).write(run)

    return start, begun


def test_who_dies_twice_takes_none_of_its_neighbours_with_it(planned):
    jobs = planned("a", "b", "c")
    start, begun = pool("b")
    run_jobs(jobs, start)
    assert begun == ["abc", "abc", "a", "b", "c"]
    states = {job.run.name: Job.read(job.run) for job in jobs}
    assert {name: job.state for name, job in states.items()} == {"a": FINISHED, "b": FAILED, "c": FINISHED}
    assert states["b"].error == "its process was killed 3 times; is there enough memory?"


def test_a_job_that_waits_from_an_earlier_sweep_was_not_lost(planned):
    jobs = planned("a", "b")
    Job.read(jobs[1].run).begun().write(jobs[1].run)  # and holds no lock: interrupted, and not begun again
    start, begun = worker("a", "a")
    run_jobs(jobs, start)
    assert begun == ["a", "a", "b"]
    assert [Job.read(job.run).state for job in jobs] == [FAILED, FINISHED]


def test_jobs_that_were_asked_to_stop_are_not_run_again(planned):
    jobs, started = planned("a", "b"), []

    def start(jobs):
        started.append(len(jobs))
        Job.read(jobs[0].run).begun().write(jobs[0].run)  # interrupted, and the other one still waits

    run_jobs(jobs, start)
    assert started == [2]


def test_a_launcher_that_starts_nothing_is_an_error(planned):
    def start(jobs):
        raise ValueError("no such queue")

    jobs = planned("a")
    before = Job.read(jobs[0].run)
    with pytest.raises(ValueError, match="no such queue"):
        run_jobs(jobs, start)
    assert Job.read(jobs[0].run) == before

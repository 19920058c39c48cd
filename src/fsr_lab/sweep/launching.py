"""A sweep from the command line to its exit code: checked, planned, launched, and what became of it told."""

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from fsr_lab.printing import print_report
from fsr_lab.session import BAD_INPUT, INTERRUPTED, Session, one_line
from fsr_lab.sweep import job as states
from fsr_lab.sweep import ray_cluster, slurm
from fsr_lab.sweep.devices import check_gpus, slots
from fsr_lab.sweep.index import current, refresh
from fsr_lab.sweep.job import last_lines
from fsr_lab.sweep.plan import Planned, plan, unresolved
from fsr_lab.sweep.stop import stopping
from fsr_lab.sweep.study import studying
from fsr_lab.sweep.task import Task, Verb

GRID = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
POOL = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"

ATTEMPTS = 2
"""How often a job may lose its process before it counts as failed."""


def run_sweep(hydra: Hydra, verb: str, work: Verb, overrides: Sequence[str], session: Session) -> None:
    """Run every job of a sweep that is due, whatever becomes of the others, and tell how they ended.

    Args:
        hydra: composes.
        verb: what the jobs do, by name: its config.
        work: what they do.
        overrides: of the command line.
        session: learns the sweep's folder, and its exit code: the worst of its jobs'.

    Raises:
        KeyboardInterrupt: it was asked to stop.
        ValueError: something is wrong that can be known before any job starts.
    """
    cfg = hydra.compose_config(verb, [*overrides, "hydra.mode=MULTIRUN"], RunMode.MULTIRUN, with_log_configuration=True)
    context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(cfg))
    task = Task(work, session.command)
    sweep, runs = Path(cfg.hydra.sweep.dir).absolute(), None
    if cfg.hydra.launcher._target_ == slurm.TARGET:
        slurm.check_slurm(cfg)
    if cfg.hydra.sweeper._target_ == GRID:
        jobs = _planned(verb, cfg, hydra)
        runs = [job.run for job in jobs]
    else:
        _room(cfg, is_pool=cfg.hydra.launcher._target_ == POOL)
    if cfg.hydra.launcher._target_ == ray_cluster.TARGET:
        ray_cluster.join(cfg)
    session.sweep = sweep
    try:
        with _stoppable(cfg, sweep):
            if runs is None:
                sweeper = Plugins.instance().instantiate_sweeper(config=cfg, hydra_context=context, task_function=task)
                with studying(sweeper, cfg, hydra.config_loader) as runs:
                    sweeper.sweep(arguments=unresolved(cfg.hydra.overrides.task))
            elif due := [job for job in jobs if job.is_due]:
                launch(_launcher(cfg, context, task), due, sweep)
    finally:
        if cfg.hydra.launcher._target_ == ray_cluster.TARGET:
            ray_cluster.leave()
        conclude(session, sweep, runs)


def launch(launcher: Launcher, due: Sequence[Planned], sweep: Path) -> None:
    """Run jobs, and once more those that a worker's death took with it; who dies twice has failed.

    Raises:
        Exception: the launcher could not start any job.
    """
    while due:
        try:
            launcher.launch([list(job.overrides) for job in due], initial_job_idx=0)
            return
        except Exception as err:
            seen = {job.run: current(job.run) for job in due}
            lost = [run for run, job in seen.items() if job is not None and job.state == states.INTERRUPTED]
            if not lost:
                raise
            if type(launcher).__name__ == "SlurmLauncher":  # the others are in Slurm's hands, and go on
                print(f"fsr: a job was lost ({one_line(err)})", file=sys.stderr, flush=True)
                slurm.wait_for_array(sweep)
                return
            print(f"fsr: a worker process was lost ({one_line(err)})", file=sys.stderr, flush=True)
            for run in lost:
                job = seen[run]
                if job is not None and job.attempts >= ATTEMPTS:
                    text = f"its process was killed {job.attempts} times; is there enough memory?"
                    job.over(states.FAILED, code=BAD_INPUT, error=text).write(run)
            due = [job for job in due if _is_left(job.run)]


def conclude(session: Session, sweep: Path, runs: Sequence[Path] | None) -> None:
    """Bring the index up to date, list what failed with the last lines of its log, and set the exit code.

    Args:
        session: whose exit code it is.
        sweep: the folder.
        runs: the jobs that were asked for; None is that it did not come to any.
    """
    jobs = refresh(sweep)
    for problem in print_report(sweep):
        session.tell(ValueError(problem))
    mine = {run: job for run, job in jobs.items() if run in (runs or ())}
    for job in mine.values():
        session.exit_code = max(session.exit_code, job.code)
        if job.state in (states.QUEUED, states.INTERRUPTED):
            session.exit_code = INTERRUPTED
    failed = {run: job for run, job in mine.items() if job.state == states.FAILED}
    for run, job in failed.items():
        print(f"job {job.number} failed: {job.error}\n    {run}")
        for line in last_lines(run):
            print(f"    {line}")
    if failed:
        print("the same command with retry=true runs what failed again")


def _planned(verb: str, cfg: DictConfig, hydra: Hydra) -> list[Planned]:
    """Return the plan, and let a pool of processes be as large as the machine has room for jobs."""
    room: list[int] = []
    is_pool = cfg.hydra.launcher._target_ == POOL
    jobs = plan(verb, cfg, hydra.config_loader, lambda job: room.append(_room(job, is_pool=is_pool)))
    if is_pool and cfg.hydra.launcher.n_jobs == -1:
        cfg.hydra.launcher.n_jobs = max(1, min(*room, sum(job.is_due for job in jobs)))
    return jobs


def _room(job: DictConfig, *, is_pool: bool) -> int:
    """Return how many such jobs this machine's pool has room for; 1 without one.

    Raises:
        ValueError: for none, or the GPUs that it asks for are not there.
    """
    room = slots(job) if is_pool else 1
    check_gpus(job)
    return room


def _launcher(cfg: DictConfig, context: HydraContext, task: Task) -> Launcher:
    return Plugins.instance().instantiate_launcher(config=cfg, hydra_context=context, task_function=task)


def _stoppable(cfg: DictConfig, sweep: Path) -> AbstractContextManager[None]:
    """Return what stops jobs in other processes when the sweep is stopped; in this one a stop comes to them itself."""
    target = cfg.hydra.launcher._target_
    if target == slurm.TARGET:
        return slurm.leaving_jobs(sweep)
    if target not in (POOL, ray_cluster.TARGET):
        return nullcontext()
    return stopping(sweep, hear_ctrl_c=target == POOL)  # Ray's processes are not of this terminal


def _is_left(run: Path) -> bool:
    job = current(run)
    return job is not None and job.state in (states.QUEUED, states.INTERRUPTED)

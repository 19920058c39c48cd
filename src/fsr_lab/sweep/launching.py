"""A sweep from the command line to its exit code: checked, planned, launched, and what became of it told."""

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from fsr_lab.printing import print_report
from fsr_lab.session import INTERRUPTED, Session
from fsr_lab.sweep import job as states
from fsr_lab.sweep import ray_cluster, slurm, slurm_queue
from fsr_lab.sweep.devices import check_gpus, slots
from fsr_lab.sweep.index import refresh
from fsr_lab.sweep.job import last_lines
from fsr_lab.sweep.plan import Planned, plan, unresolved
from fsr_lab.sweep.relaunch import run_jobs
from fsr_lab.sweep.stop import stopping
from fsr_lab.sweep.study import studying
from fsr_lab.sweep.task import Task, Verb

GRID = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
POOL = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"


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
    is_slurm = cfg.hydra.launcher._target_ == slurm.TARGET
    if is_slurm:
        slurm.check_slurm(cfg)
        submissions = slurm_queue.own_folder(cfg, sweep)
    if cfg.hydra.sweeper._target_ == GRID:
        there = slurm_queue.in_hand(sweep) if is_slurm else {}
        jobs = _planned(verb, cfg, hydra, {run for run in there.values() if run is not None})
        runs, due = [job.run for job in jobs], [job for job in jobs if job.is_due]
    else:
        _room(cfg, is_pool=cfg.hydra.launcher._target_ == POOL)
    if cfg.hydra.launcher._target_ == ray_cluster.TARGET:
        ray_cluster.join(cfg)
    session.sweep = sweep

    def start(jobs: Sequence[Planned]) -> None:
        launcher = Plugins.instance().instantiate_launcher(config=cfg, hydra_context=context, task_function=task)
        launcher.launch([list(job.overrides) for job in jobs], initial_job_idx=0)

    try:
        with _stoppable(cfg, sweep):
            if runs is None:
                sweeper = Plugins.instance().instantiate_sweeper(config=cfg, hydra_context=context, task_function=task)
                with studying(sweeper, cfg, hydra.config_loader) as runs:
                    sweeper.sweep(arguments=unresolved(cfg.hydra.overrides.task))
            elif is_slurm:
                slurm_queue.submit([job.run for job in due], sweep, submissions, partial(start, due))
            else:
                run_jobs(due, start)
    finally:
        if cfg.hydra.launcher._target_ == ray_cluster.TARGET:
            ray_cluster.leave()
        conclude(session, sweep, runs)


def conclude(session: Session, sweep: Path, runs: Sequence[Path] | None) -> None:
    """Bring the index up to date, list what failed with the last lines of its log, and set the exit code.

    Args:
        session: whose exit code it is.
        sweep: the folder.
        runs: the jobs that were asked for; None is that it did not come to any.
    """
    jobs, asked = refresh(sweep), set(runs or ())
    for problem in print_report(sweep):
        session.tell(ValueError(problem))
    mine = {run: job for run, job in jobs.items() if run in asked}
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


def _planned(verb: str, cfg: DictConfig, hydra: Hydra, in_hand: Collection[Path]) -> list[Planned]:
    """Return the plan, and let a pool of processes be as large as the machine has room for jobs."""
    room: list[int] = []
    is_pool = cfg.hydra.launcher._target_ == POOL
    jobs = plan(verb, cfg, hydra.config_loader, lambda job: room.append(_room(job, is_pool=is_pool)), in_hand)
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


def _stoppable(cfg: DictConfig, sweep: Path) -> AbstractContextManager[None]:
    """Return what stops jobs in other processes when the sweep is stopped; in this one a stop comes to them itself."""
    target = cfg.hydra.launcher._target_
    if target == slurm.TARGET:
        return slurm_queue.leaving_jobs(sweep)
    if target not in (POOL, ray_cluster.TARGET):
        return nullcontext()
    return stopping(sweep, hear_ctrl_c=target == POOL)  # Ray's processes are not of this terminal

"""What a launcher calls, in this process or another one: one job of a sweep, from its lock to its last word."""

import os
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from fsr_lab.engine.lock import held
from fsr_lab.session import INTERRUPTED as INTERRUPTED_CODE
from fsr_lab.session import Session, code_of, is_interruption, one_line
from fsr_lab.sweep.devices import settle
from fsr_lab.sweep.index import refresh
from fsr_lab.sweep.job import FAILED, FINISHED, INTERRUPTED, LOG, QUEUED, Job
from fsr_lab.sweep.log import logged
from fsr_lab.sweep.plan import unresolved
from fsr_lab.sweep.requeue import Requeue, requeueing
from fsr_lab.sweep.stop import is_stopping, stopping_job

Verb = Callable[[Session, DictConfig], None]


@dataclass(frozen=True)
class Task:
    """A verb as a launcher's task; it travels to other processes, and what it found returns by the job's directory.

    Attributes:
        verb: does the work.
        command: as it was typed, for provenance.
        launcher_pid: the process that started the sweep: a job that runs in it stops the sweep when it is stopped.
    """

    verb: Verb
    command: str
    launcher_pid: int = field(default_factory=os.getpid)

    def __call__(self, cfg: DictConfig) -> float | None:
        """Run one job and return its best robust validation accuracy, which tuning raises; no error gets out.

        Raises:
            KeyboardInterrupt: the job was asked to stop, and runs in the process of the whole sweep.
        """
        from fsr_lab.report.results import OBJECTIVE

        hydra = HydraConfig.get()
        run, sweep = Path(hydra.runtime.output_dir), Path(hydra.sweep.dir)
        try:
            with ExitStack() as stack:
                if is_stopping(sweep):
                    return None
                stack.enter_context(held(run))
                job = Job.read(run)
                if job is not None and job.state in (FINISHED, FAILED):  # two sweeps had planned it, and one was first
                    print(f"{run} has {job.state} meanwhile, and is left as it is")
                else:
                    job = self._work(cfg, run, sweep, stack.enter_context(logged(run / LOG)))
                return job.results.get(OBJECTIVE)
        except (OSError, RuntimeError, ValueError) as err:  # another process is at it, or its own files are refused
            Session(self.command).tell(err)
            return None

    def _work(self, cfg: DictConfig, run: Path, sweep: Path, log: TextIO) -> Job:
        from fsr_lab.report.results import results

        hydra = HydraConfig.get()
        job = (Job.read(run) or Job(number=hydra.job.num, overrides=tuple(unresolved(hydra.overrides.task)))).begun()
        job.write(run)
        refresh(sweep, [run])
        session = Session(self.command, sweep=sweep)
        stopped: BaseException | None = None

        def queued() -> None:
            job.over(QUEUED).write(run)
            refresh(sweep, [run])

        with requeueing(queued) as requeue, self._stoppable(requeue):
            try:
                settle(cfg)
                self.verb(session, cfg)
                job = job.over(FINISHED, code=session.exit_code, results=results(run))
            except BaseException as err:
                if requeue is not None and requeue.is_done:
                    raise SystemExit(INTERRUPTED_CODE) from err  # with no result, for which the sweep waits on
                with suppress(OSError):
                    traceback.print_exception(err, file=log)
                session.tell(err)
                stopped = err if is_interruption(err) or not isinstance(err, Exception) else None
                state = FAILED if stopped is None else INTERRUPTED
                job = job.over(state, code=code_of(err), error=one_line(err))
        job.write(run)
        refresh(sweep, [run])
        if stopped is not None and self._is_in_sweep:
            raise KeyboardInterrupt from stopped
        return job

    def _stoppable(self, requeue: Requeue | None) -> AbstractContextManager[None]:
        """Return what lets a SIGTERM stop a job; submitit answers those of Slurm, and the sweep's process its own."""
        return stopping_job() if requeue is None and not self._is_in_sweep else nullcontext()

    @property
    def _is_in_sweep(self) -> bool:
        return os.getpid() == self.launcher_pid

"""Jobs that a sweeper thinks of while the sweep runs, each planned when it is thought of."""

import fcntl
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf

from fsr_lab.sweep.index import refresh
from fsr_lab.sweep.job import FINISHED, INTERRUPTED, QUEUED, Job
from fsr_lab.sweep.plan import composed, unresolved

OPTUNA = "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"
LOCK = ".study.lock"


class Planning:
    """A launcher before which every job gets a directory with a name of its own, and a row of the index."""

    def __init__(self, launcher: Launcher, cfg: DictConfig, loader: ConfigLoader) -> None:
        self.launcher, self.cfg, self.loader = launcher, cfg, loader
        self.runs: list[Path] = []

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run jobs, as a launcher does."""
        sweep = Path(self.cfg.hydra.sweep.dir)
        swept = list(unresolved(self.cfg.hydra.sweeper.params or {}))
        planned, number = [], len(refresh(sweep))
        for place, overrides in enumerate(job_overrides):
            run, words, _ = composed(self.cfg, self.loader, tuple(overrides), number + place, swept)
            if Job.read(run) is None:
                Job(number=number + place, overrides=words).write(run)
            planned.append((run, words))
        self.runs += [run for run, _ in planned]
        refresh(sweep, self.runs)
        returns: Sequence[JobReturn] = self.launcher.launch([words for _, words in planned], initial_job_idx)
        return returns


@contextmanager
def studying(sweeper: Sweeper, cfg: DictConfig, loader: ConfigLoader) -> Iterator[list[Path]]:
    """Let a sweeper's jobs be planned when it launches them, and yield the list that their directories come into.

    The first process of a study takes up what an earlier one left when it was killed.

    Raises:
        ValueError: there is nothing that tells its trials apart.
    """
    if not OmegaConf.select(cfg, "dataset.val_size", default=1):
        raise ValueError("dataset.val_size is 0, and a trial's worth is its robust validation accuracy; hold some out")
    sweep = Path(cfg.hydra.sweep.dir)
    sweep.mkdir(parents=True, exist_ok=True)  # a study's database goes there
    inner: Any = getattr(sweeper, "sweeper", sweeper)  # Optuna's hides behind one that loads fast
    inner.launcher = planning = Planning(inner.launcher, cfg, loader)
    with (sweep / LOCK).open("w") as lock:
        if cfg.hydra.sweeper._target_ == OPTUNA and inner.storage is not None and _is_alone(lock.fileno()):
            take_up(inner.storage, inner.study_name, refresh(sweep).values())
        fcntl.flock(lock, fcntl.LOCK_SH)  # as all do while they live
        yield planning.runs


def take_up(storage: Any, name: str, jobs: Collection[Job]) -> None:
    """Settle the trials of processes that are no more: who was done is told of, who was not is proposed again first.

    Args:
        storage: of the study, as Optuna takes it.
        name: of the study.
        jobs: of its sweep.
    """
    import optuna
    from optuna.trial import TrialState

    from fsr_lab.report.results import VALIDATION

    best = f"{VALIDATION}_best"
    try:
        study = optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        return  # it begins now
    again: list[dict[str, Any]] = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.FAIL)):
        words = {f"{key}={value}" for key, value in trial.params.items()}
        job = next((job for job in jobs if words and words <= set(job.overrides)), None)
        is_open = trial.state == TrialState.RUNNING
        if job is None:
            continue
        if is_open and job.state == FINISHED and best in job.results:
            study.tell(trial.number, job.results[best])
        elif job.state in (QUEUED, INTERRUPTED):
            if is_open:
                study.tell(trial.number, state=TrialState.FAIL)
            if trial.params not in again:
                again.append(trial.params)
    for params in again:
        study.enqueue_trial(params)


def _is_alone(lock: int) -> bool:
    """Take a study's lock for this process alone, and tell whether that succeeded."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

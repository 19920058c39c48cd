"""Jobs that a sweeper thinks of while the sweep runs, each planned when it is thought of."""

import fcntl
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf

from fsr_lab.core.files import write_text
from fsr_lab.sweep.index import refresh
from fsr_lab.sweep.job import FAILED, FINISHED, INTERRUPTED, QUEUED, Job
from fsr_lab.sweep.plan import composed, unresolved
from fsr_lab.sweep.slurm_queue import wait

OPTUNA = "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"
LOCK, STUDY = ".study.lock", "study.yaml"
"""Files of a study's folder: what its processes hold while they live, and what all its trials have in common."""


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
            before = Job.read(run)
            if before is None or before.state == FAILED:  # proposed again, it is tried again
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
        ValueError: there is nothing that tells its trials apart, or the study is of another configuration.
    """
    if not OmegaConf.select(cfg, "dataset.val_size", default=1):
        raise ValueError("dataset.val_size is 0, and a trial's worth is its robust validation accuracy; hold some out")
    sweep = Path(cfg.hydra.sweep.dir)
    sweep.mkdir(parents=True, exist_ok=True)  # a study's database goes there
    refuse_other_study(cfg, loader)
    inner: Any = getattr(sweeper, "sweeper", sweeper)  # Optuna's hides behind one that loads fast
    inner.launcher = planning = Planning(inner.launcher, cfg, loader)
    with (sweep / LOCK).open("w") as lock:
        if cfg.hydra.sweeper._target_ == OPTUNA and inner.storage is not None and _is_alone(lock.fileno()):
            wait(sweep)  # for jobs that Slurm still has of a process that was killed
            take_up(inner.storage, inner.study_name, refresh(sweep).values())
        fcntl.flock(lock, fcntl.LOCK_SH)  # as all do while they live
        yield planning.runs


def refuse_other_study(cfg: DictConfig, loader: ConfigLoader) -> None:
    """Keep what all trials of a study have in common, and refuse to mix in trials that have other things in common.

    Raises:
        ValueError: as said, the message names what differs; or what is tuned is not there.
    """
    from fsr_lab.engine.run import differences

    given = OverridesParser.create(config_loader=loader).parse_overrides(unresolved(cfg.hydra.overrides.task))
    tuned = set(cfg.hydra.sweeper.params or {})
    tuned |= {override.get_key_element() for override in given if override.is_sweep_override()}
    fixed = tuple(str(override.input_line) for override in given if not override.is_sweep_override())
    _, _, common = composed(cfg, loader, fixed, 0, ())
    here: Any = OmegaConf.to_container(common, resolve=True)
    for key in sorted(key for key in tuned if not key.startswith("+")):
        *parents, last = key.rpartition("@")[2].split(".")  # of a group, what it fills
        try:
            reduce(getitem, parents, here).pop(last)
        except (LookupError, TypeError) as err:
            raise ValueError(
                f"{key} is to be tuned, and this configuration has none; give hydra.sweeper.params"
            ) from err
    path = Path(cfg.hydra.sweep.dir) / STUDY
    if not path.is_file():
        write_text(path, OmegaConf.to_yaml(OmegaConf.create(here)))
        return
    there: Any = OmegaConf.to_container(OmegaConf.load(path))
    differing = differences(there, here)
    epochs = [config["trainer"]["max_epochs"] for config in (there, here)]
    if epochs[0] != epochs[1]:
        differing.append(f"trainer.max_epochs: {epochs[0]} there, {epochs[1]} here")
    if differing:
        raise ValueError(
            f"{path.parent} holds a study of another configuration ({', '.join(differing[:4])}); "
            "give this one another name="
        )


def take_up(storage: Any, name: str, jobs: Collection[Job]) -> None:
    """Settle the trials of processes that are no more: who was done is told of, who was not is proposed again first.

    Args:
        storage: of the study, as Optuna takes it.
        name: of the study.
        jobs: of its sweep.
    """
    import optuna
    from optuna.trial import TrialState

    from fsr_lab.report.results import OBJECTIVE

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
        if is_open and job.state == FINISHED and OBJECTIVE in job.results:
            study.tell(trial.number, job.results[OBJECTIVE])
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

"""Jobs that a sweeper thinks of while the sweep runs, each planned when it is thought of."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf

from fsr_lab.sweep.index import refresh
from fsr_lab.sweep.job import Job
from fsr_lab.sweep.plan import composed, unresolved


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


def plan_as_it_goes(sweeper: Sweeper, cfg: DictConfig, loader: ConfigLoader) -> list[Path]:
    """Let a sweeper's jobs be planned when it launches them, and return the list that their directories come into.

    Raises:
        ValueError: there is nothing that tells its trials apart.
    """
    if not OmegaConf.select(cfg, "dataset.val_size", default=1):
        raise ValueError("dataset.val_size is 0, and a trial's worth is its robust validation accuracy; hold some out")
    Path(cfg.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)  # a study's database goes there
    inner: Any = getattr(sweeper, "sweeper", sweeper)  # Optuna's hides behind one that loads fast
    inner.launcher = planning = Planning(inner.launcher, cfg, loader)
    return planning.runs

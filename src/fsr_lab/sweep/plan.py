"""A sweep's jobs before any of them starts: composed, given a directory each, checked against what lies there."""

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from fsr_lab.arguments import key_of, quoted
from fsr_lab.sweep.index import current, refresh
from fsr_lab.sweep.job import FAILED, FINISHED, INTERRUPTED, QUEUED, RUNNING, Job

SUBDIR = "${hydra:job.override_dirname}"
"""The default name of a job's directory, which is made fit for one here; another is taken as it is."""
LONGEST_NAME = 255
"""Bytes of a file's name, on every common file system."""


class Planned(NamedTuple):
    """A job of the plan: its directory, what composes it, and whether it is to be run."""

    run: Path
    overrides: tuple[str, ...]
    is_due: bool


def plan(
    verb: str,
    cfg: DictConfig,
    loader: ConfigLoader,
    examine: Callable[[DictConfig], object],
    in_hand: Collection[Path] = (),
) -> list[Planned]:
    """Return every job of a sweep's config and leave word of it in its directory and in the sweep's index.

    Finished jobs are not due, nor failed ones unless `retry` says so, nor those that another process runs or will run.

    Args:
        verb: what the jobs do.
        cfg: the sweep's, as Hydra composes it for a multirun.
        loader: composes the jobs.
        examine: is shown every job's config, and may refuse it; nothing has been written then.
        in_hand: directories of jobs that wait or run elsewhere, unless they say that they are over.

    Raises:
        ValueError: there is no job, two would share a directory, one does not compose, a key is given twice, or a
            directory holds a run of another configuration.
    """
    jobs = combinations(cfg, loader)
    swept = [key for key, values in zip(*_values(jobs), strict=True) if len(values) > 1]
    for key in swept:
        if key == "launcher" or key.startswith(("launcher.", "hydra.launcher")):
            raise ValueError(f"jobs differ in {key}, and a sweep has one launcher; quote a value that has commas")
    planned = []
    for number, words in enumerate(jobs):
        run, words, job_cfg = composed(cfg, loader, words, number, swept)
        examine(job_cfg)
        is_wanted = is_due(verb, job_cfg, run, is_in_hand=run in in_hand)
        planned.append(Planned(run, words, is_wanted))  # without its config: there may be thousands
    for run, count in Counter(job.run for job in planned).items():
        if count > 1:
            raise ValueError(
                f"{count} jobs would share the directory {run}; name them in hydra.sweep.subdir by what differs"
                + (f": {', '.join(swept)}" if swept else "")
            )
    sweep = Path(cfg.hydra.sweep.dir)
    sweep.mkdir(parents=True, exist_ok=True)
    for number, (run, words, is_wanted) in enumerate(planned):
        before = current(run)
        job = replace(before or Job(number=number, overrides=words), number=number, overrides=words)
        if is_wanted:
            job = replace(job, state=QUEUED, error="", code=0)
        may_write = before is None or is_wanted or (job.state != RUNNING and run not in in_hand)
        if may_write and job != before:  # one that was queued may begin at this instant
            job.write(run)
    OmegaConf.save(cfg, sweep / "multirun.yaml")
    refresh(sweep, [job.run for job in planned])
    return planned


def combinations(cfg: DictConfig, loader: ConfigLoader) -> list[tuple[str, ...]]:
    """Return the overrides of every job: all combinations of what the grid's YAML and the command line list.

    The command line's list of a key replaces the YAML's.

    Raises:
        ValueError: there is no combination, or the command line lists a key's values and then says otherwise.
    """
    parser = OverridesParser.create(config_loader=loader)
    given = parser.parse_overrides(unresolved(cfg.hydra.overrides.task))
    last = {override.get_key_element(): override for override in given}
    for override in given:
        final = last[override.get_key_element()]
        if override.is_sweep_override() and override.input_line != final.input_line:  # its jobs would be lost unseen
            raise ValueError(f"{override.input_line} and {final.input_line} contradict each other; give one of them")
    grid = parser.parse_overrides(
        [f"{key}={values}" for key, values in unresolved(cfg.hydra.sweeper.params or {}).items()]
    )
    jobs = BasicSweeper.split_arguments([*grid, *given], None)[0]
    if not jobs:
        raise ValueError("this sweep has no jobs: a glob matched nothing, or a list is empty")
    return [tuple(words) for words in jobs]


def is_due(verb: str, cfg: DictConfig, run: Path, *, is_in_hand: bool) -> bool:
    """Tell whether a job is to be run.

    Args:
        verb: what it does.
        cfg: its config.
        run: its directory.
        is_in_hand: whether it waits or runs elsewhere, unless it says that it is over.

    Raises:
        ValueError: its directory holds a run of another configuration.
    """
    job = current(run)
    is_over = job is not None and job.state in (FINISHED, FAILED)
    if (is_in_hand and not is_over) or (job is not None and job.state == RUNNING):
        return False
    if verb != "train" or cfg.resume == "never":
        return True
    from fsr_lab.engine.run import is_finished, refuse_other_config

    refuse_other_config(cfg, run)
    if job is not None and job.state == FAILED:
        return bool(cfg.retry)
    return job is None or job.state in (QUEUED, INTERRUPTED) or not (job.state == FINISHED and is_finished(cfg, run))


def composed(
    cfg: DictConfig, loader: ConfigLoader, words: tuple[str, ...], number: int, swept: Sequence[str]
) -> tuple[Path, tuple[str, ...], DictConfig]:
    """Return a job's directory, its overrides with a name for that where it needs one, and its config.

    Raises:
        ValueError: it is named by its number, or the grid varies what it does not have.
    """
    try:
        job_cfg = loader.load_sweep_config(cfg, list(words))
    except ConfigCompositionException as err:
        for key in unresolved(cfg.hydra.sweeper.params or {}):
            if f"'{key}'" in str(err):
                raise ValueError(
                    f"the grid varies {key}, which this configuration does not have; choose what has it, such as "
                    "defense=fsr, or another hparams_search="
                ) from err
        raise
    with open_dict(job_cfg):
        job_cfg.hydra.job.num = number
        job_cfg.hydra.job.id = str(number)
    HydraConfig.instance().set_config(job_cfg)  # what `hydra:` in a config asks
    raw = str(unresolved(job_cfg.hydra.sweep)["subdir"])
    if "job.num" in raw or "job.id" in raw:
        raise ValueError(
            f"hydra.sweep.subdir={raw} names jobs by numbers, which differ where a sweep is continued; "
            "name them by their overrides, as the default does"
        )
    subdir = str(job_cfg.hydra.sweep.subdir)
    if raw == SUBDIR and subdir != (
        subdir := job_name(words, swept, job_cfg.hydra.job.config.override_dirname.exclude_keys)
    ):
        words = (*words, f"hydra.sweep.subdir={quoted(subdir)}")
    run = Path(job_cfg.hydra.sweep.dir).absolute() / subdir
    with read_write(job_cfg.hydra.runtime), open_dict(job_cfg.hydra.runtime):
        job_cfg.hydra.runtime.output_dir = str(run)
    HydraConfig.instance().set_config(job_cfg)
    with read_write(job_cfg), open_dict(job_cfg):
        del job_cfg["hydra"]  # which a job's own config does not hold
    return run, words, job_cfg


def unresolved(node: Any) -> Any:
    """Return a config's plain content with its interpolations as they are written: jobs resolve them, each its own."""
    return OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node


def job_name(words: Sequence[str], swept: Sequence[str], excluded: Sequence[str]) -> str:
    """Return a directory's name: the overrides in order, without a slash, and no longer than a name may be.

    Args:
        words: all overrides.
        swept: the keys in which jobs differ, which are named whatever they are.
        excluded: other keys that are not named, nor those below them: they say where and how a job runs, not what.
    """

    def is_named(key: str) -> bool:
        return key in swept or not any(key == other or key.startswith(f"{other}.") for other in excluded)

    name = ",".join(sorted(word for word in words if is_named(key_of(word)))).replace("/", "_") or "defaults"
    if len(name.encode()) <= LONGEST_NAME:
        return name
    tail = f"...{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return name.encode()[: LONGEST_NAME - len(tail)].decode(errors="ignore") + tail


def _values(jobs: Sequence[Sequence[str]]) -> tuple[list[str], list[set[str]]]:
    """Return the keys of all jobs' overrides, and the values that each takes."""
    found: dict[str, set[str]] = {}
    for word in (word for words in jobs for word in words):
        found.setdefault(key_of(word), set()).add(word)
    return list(found), list(found.values())

"""What lies below a folder: runs, their records and analyses; what cannot be read is told and leaves the rest."""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from fsr_lab.core.analysis import FOLDER, AnalysisRecord
from fsr_lab.core.record import EvaluationRecord
from fsr_lab.report.manifest import MANIFEST

RECORDS, METRICS, SAMPLES, PROVENANCE = "records", "metrics", "samples.npz", "provenance.json"

CHECKPOINT = re.compile(r"^(?P<method>.*) \((?P<checkpoint>(?:last|best)(?:, \w+)?)\)(?P<rest>.*)$", re.DOTALL)
"""How a record's name tells the checkpoint, and its average: "AT (best, ema)"."""
SEED = re.compile(r"(?:^|,)seed=(\d+)(?:,|$)")

T = TypeVar("T", EvaluationRecord, AnalysisRecord)


@dataclass(frozen=True)
class Measured:
    """A record, and what its place says of it.

    Attributes:
        record: read.
        path: its JSON file.
        run: the run directory.
    """

    record: EvaluationRecord
    path: Path
    run: Path

    @property
    def method(self) -> str:
        """The record's name without its checkpoint."""
        found = CHECKPOINT.match(self.record.name)
        return f"{found['method']}{found['rest']}" if found else self.record.name

    @property
    def checkpoint(self) -> str:
        """Which checkpoint, and which average of it, was evaluated; "" where the name does not tell."""
        found = CHECKPOINT.match(self.record.name)
        return found["checkpoint"] if found else ""

    @property
    def seed(self) -> int:
        """The run's, where its directory tells it: the record's own is of the attacks' draws."""
        return seed_of(self.run, self.record.provenance.seed)

    @property
    def stem(self) -> str:
        """Its place among the run's records, such as "last" or "feature_swap/f_plus"."""
        return self.path.relative_to(self.run / RECORDS).with_suffix("").as_posix()


@dataclass(frozen=True)
class Analysed:
    """An analysis and its place, likewise."""

    record: AnalysisRecord
    path: Path
    run: Path

    @property
    def seed(self) -> int:
        """As of `Measured`."""
        return seed_of(self.run, self.record.provenance.seed)


class Gathered(NamedTuple):
    """What was found.

    Attributes:
        runs: directories that hold anything to show.
        measured: their records; within a run the last weights before the best: they are the paper's column.
        analysed: their analyses.
        problems: a line of cause and cure for each file that could not be read.
    """

    runs: tuple[Path, ...]
    measured: tuple[Measured, ...]
    analysed: tuple[Analysed, ...]
    problems: tuple[str, ...]


def gather(*folders: Path) -> Gathered:
    """Read every run below some folders, in the order of their paths.

    Raises:
        ValueError: one of them does not exist.
    """
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"no folder {folder}; give a run, a sweep or an artefact folder")
    return read_runs(dict.fromkeys(run for folder in folders for run in runs_below(folder)))


def read_runs(runs: Iterable[Path]) -> Gathered:
    """Read what run directories hold."""
    runs = tuple(runs)
    measured: list[Measured] = []
    analysed: list[Analysed] = []
    problems: list[str] = []
    for run in runs:
        paths = sorted(
            (run / RECORDS).rglob("*.json"), key=lambda path: (path.parent, not path.stem.startswith("last"), path.stem)
        )
        measured += [
            Measured(record, path, run) for path in paths if (record := _read(EvaluationRecord.load, path, problems))
        ]
        paths = sorted((run / FOLDER).glob("*.json"))
        analysed += [
            Analysed(found, path, run) for path in paths if (found := _read(AnalysisRecord.load, path, problems))
        ]
        alone = [path for place in (RECORDS, FOLDER) for path in sorted((run / place).rglob("*.npz"))
                 if not path.with_suffix(".json").is_file()]  # fmt: skip
        problems += [f"{path} has lost {path.with_suffix('.json').name} beside it; evaluate again" for path in alone]
    return Gathered(runs, tuple(measured), tuple(analysed), tuple(problems))


def seed_of(run: Path, otherwise: int) -> int:
    """Return the seed of a run by its directory's name, or by what it says of its training, or another one."""
    found = SEED.search(run.name)
    if found:
        return int(found[1])
    try:
        return int(json.loads((run / PROVENANCE).read_text())["seed"])
    except (OSError, ValueError, KeyError, TypeError):
        return otherwise


def run_names(gathered: Gathered) -> dict[Path, str]:
    """Return what plots call runs that left curves or images: by method and seed, or by place where these fail."""
    drawn = [run for run in gathered.runs if (run / METRICS).is_dir() or (run / SAMPLES).is_file()]
    methods = {each.run: f"{each.method}, seed {each.seed}" for each in reversed(gathered.measured)}
    count = Counter(methods.get(run) for run in drawn)
    return {
        run: methods[run] if run in methods and count[methods[run]] == 1 else "/".join(run.resolve().parts[-2:])
        for run in drawn
    }


def runs_below(folder: Path) -> Iterator[Path]:
    """Yield the folders that hold records, analyses, metrics or samples; an artefact's records hold such folders."""
    for path, folders, files in os.walk(folder):
        place = Path(path)
        own = {RECORDS, FOLDER, METRICS} & set(folders) if MANIFEST not in files else set()
        folders[:] = sorted(name for name in folders if name not in own)
        if own or SAMPLES in files:
            yield place


def _read(load: Callable[[Path], T], path: Path, problems: list[str]) -> T | None:
    try:
        return load(path)
    except ValueError as err:
        problems.append(str(err))
        return None

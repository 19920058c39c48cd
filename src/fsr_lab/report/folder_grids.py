"""The tables of a folder of runs: one for each threat and set of test images, a row for each method and checkpoint."""

from collections.abc import Iterable, Mapping, Sequence
from os.path import relpath
from pathlib import Path

from fsr_lab.report.columns import steps, united, value
from fsr_lab.report.gather import Measured
from fsr_lab.report.grid import Cell, Grid, Line, Number
from fsr_lab.report.manifest import setting_name
from fsr_lab.report.significance import with_tests

SEED = "seed"
MOST = 6
"""Rows up to which each is tested against each; of more, each against the first."""

Place = tuple[str, str, tuple[tuple[str, str], ...], str]
"""Method, checkpoint, settings of the run, and its path where these do not tell two networks apart."""


def folder_grids(measured: Sequence[Measured], folder: Path) -> list[Grid]:
    """Lay out records whatever they are, without the paper's numbers.

    Args:
        measured: records in the order of their paths.
        folder: that the report is about; networks of one name are told apart by their places in it.
    """
    alike: dict[tuple[object, ...], list[Measured]] = {}
    for each in measured:
        record = each.record
        key = (str(record.threat), record.provenance.hashes.get("data"), record.ids.tobytes())
        alike.setdefault(key, []).append(each)
    return [_grid(own, folder) for own in alike.values()]


def settings_of(name: str) -> dict[str, str]:
    """Return the overrides that a run directory's name tells, but for the seed; none where it tells none."""
    words: list[str] = []
    depth = 0
    for part in name.split(","):
        if depth:
            words[-1] += f",{part}"  # of a list within brackets
        else:
            words.append(part)
        depth += part.count("[") - part.count("]")
    if not all("=" in word for word in words):
        return {}
    pairs = [word.split("=", 1) for word in words]
    return {key: text for key, text in pairs if key != SEED}


def _grid(measured: Sequence[Measured], folder: Path) -> Grid:
    every = united([each.record for each in measured])
    parts = steps(every)
    columns = [column for column in every if column not in parts]
    rows: dict[Place, list[Measured]] = {}
    for place, each in zip(_places(measured, folder), measured, strict=True):
        rows.setdefault(place, []).append(each)
    varied = _varied(settings for _, _, settings, _ in rows)
    lines = []
    for (method, checkpoint, settings, path), own in rows.items():
        shown = {key: text for key, text in settings if key in varied}
        name = ", ".join([method, *([setting_name(shown)] if shown else [])])
        cells = []
        for column in columns:
            numbers: dict[int, Number] = {}
            for each in own:
                found = value(each.record, column)
                if found is not None:
                    numbers.setdefault(each.seed, Number(found, each.seed, each.path, each.record))
            cells.append(Cell(numbers=tuple(numbers[seed] for seed in sorted(numbers))))
        lines.append(Line(name=f"{name} [{path}]" if path else name, checkpoint=checkpoint, group=0,
                          cells=tuple(cells), settings=shown))  # fmt: skip
    record = measured[0].record
    grid = Grid(
        title=f"{len(record):,} test images",
        threat=str(record.threat),
        headings=tuple(column.heading for column in columns),
        lines=tuple(lines),
        axes=tuple(sorted(varied)),
    )
    most = max(sum(line.checkpoint == other.checkpoint for other in lines) for line in lines)
    return with_tests(grid, None if most <= MOST else lines[0].name)[0]


def _places(measured: Sequence[Measured], folder: Path) -> list[Place]:
    """Return where each record belongs: seeds of one method together, different networks of one seed apart."""
    places = [(each.method, each.checkpoint, tuple(settings_of(each.run.name).items())) for each in measured]
    networks: dict[object, set[object]] = {}
    for place, each in zip(places, measured, strict=True):
        weights = each.record.provenance.hashes.get("weights", each.path)
        networks.setdefault((place, each.seed), set()).add(weights)
    return [
        (*place, _relative(each.path, folder) if len(networks[place, each.seed]) > 1 else "")
        for place, each in zip(places, measured, strict=True)
    ]


def _varied(settings: Iterable[Sequence[tuple[str, str]]]) -> set[str]:
    """Return the overrides in which runs differ."""
    all_of_them: list[Mapping[str, str]] = [dict(each) for each in settings]
    keys = {key for each in all_of_them for key in each}
    return {key for key in keys if len({each.get(key) for each in all_of_them}) > 1}


def _relative(path: Path, folder: Path) -> str:
    return Path(relpath(path, folder)).with_suffix("").as_posix()

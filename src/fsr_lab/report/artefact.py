"""An artefact folder: the runs that its manifest asks for, laid out beside the paper's numbers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fsr_lab.report.columns import Value, columns_of, value
from fsr_lab.report.expected import EXPECTED, Expected
from fsr_lab.report.folder_grids import settings_of
from fsr_lab.report.gather import Analysed, Measured, read_runs
from fsr_lab.report.grid import Cell, Grid, Line, Number
from fsr_lab.report.interval import wilson
from fsr_lab.report.kept import Kept, kept_runs, run_titles
from fsr_lab.report.manifest import MANIFEST, AnalysisSpec, Manifest, PanelSpec, RowSpec
from fsr_lab.report.significance import with_tests

LAST = "last"


@dataclass(frozen=True)
class Artefact:
    """What was found for an artefact.

    Attributes:
        manifest: what it is to hold.
        expected: the paper's numbers.
        grids: its tables: for each panel those scales at which something was measured, or else an empty one.
        measured: the records in them.
        analysed: the analyses that its manifest names, with their scales.
        runs: {directory that any of them lies in: what it is called}.
        missing: analyses that are not there.
        problems: a line of cause and cure for each record that was left out or may not be compared.
    """

    manifest: Manifest
    expected: Expected
    grids: tuple[Grid, ...]
    measured: tuple[Measured, ...]
    analysed: tuple[tuple[str, Analysed], ...]
    runs: dict[Path, str]
    missing: tuple[str, ...]
    problems: tuple[str, ...]


def read_artefact(folder: Path, runs: Path | None = None) -> Artefact:
    """Read an artefact's manifest, the paper's numbers, and the records that it and the artefacts it shares with keep.

    Args:
        folder: with a manifest.yaml.
        runs: the folder of runs to look into instead of what is kept.

    Raises:
        ValueError: the manifest or the paper's numbers are missing or damaged, or there is no such folder of runs.
    """
    manifest, expected = Manifest.load(folder / MANIFEST), Expected.load(folder / EXPECTED)
    places, problems = kept_runs(folder, manifest, runs)
    found = read_runs(places)
    looks = _Looks(manifest, expected, places, found.measured, found.analysed, [*problems, *found.problems])
    grids = tuple(grid for panel in manifest.panels for grid in looks.grids(panel))
    looks.tell_unused()
    shown = {spec: list(looks.analyses(spec)) for spec in manifest.analyses}
    missing = [f"{spec.kind} of {spec.name} ({spec.experiment})" for spec, own in shown.items() if not own]
    return Artefact(
        manifest, expected, grids, tuple(looks.used.values()), tuple(each for own in shown.values() for each in own),
        run_titles(manifest, places), tuple(missing), tuple(dict.fromkeys(looks.problems)),
    )  # fmt: skip


class _Looks:
    """What was found, and how it is looked through; `used` and `problems` grow."""

    def __init__(
        self,
        manifest: Manifest,
        expected: Expected,
        places: dict[Path, Kept],
        measured: Sequence[Measured],
        analysed: Sequence[Analysed],
        problems: list[str],
    ) -> None:
        self.manifest, self.expected, self.places = manifest, expected, places
        self.measured, self.analysed, self.problems = measured, analysed, problems
        self.used: dict[Path, Measured] = {}

    def grids(self, panel: PanelSpec) -> list[Grid]:
        """Return a panel's tables: of every scale at which something of it was measured, else of the paper's alone."""
        found = [self._grid(panel, scale) for scale in panel.scales]
        kept = [grid for grid in found if grid.is_measured]
        return kept or [grid for grid in found if grid.scale == list(panel.scales)[-1]]

    def analyses(self, spec: AnalysisSpec) -> Iterator[tuple[str, Analysed]]:
        """Yield the analyses of one kind of one network, with their scales."""
        for each in self.analysed:
            kept = self.places[each.run]
            if (kept.experiment, each.record.kind) == (spec.experiment, spec.kind):
                yield kept.scale, each

    def tell_unused(self) -> None:
        """Tell of each record that fits no row, and why."""
        for each in self.measured:
            if each.path in self.used:
                continue
            kept = self.places[each.run]
            of_it = [
                (panel, row) for panel in self.manifest.panels if kept.scale in panel.scales
                for group in panel.groups for row in group if row.experiment == kept.experiment
            ]  # fmt: skip
            fitting = [panel for panel, row in of_it if _fits(row, each, kept)]
            if not of_it or (not fitting and "/" in each.stem):
                continue  # a run of an analysis has records that no table is made of
            if not each.checkpoint:
                cause = "its name tells no checkpoint; evaluate without label="
            elif not fitting:
                cause = f"the manifest has no such run of {kept.experiment} (settings {settings_of(kept.job)})"
            else:
                wanted = " or ".join(dict.fromkeys(panel.scales[kept.scale] for panel in fitting))
                cause = f"it is of {each.record.threat}, the table of {wanted}; evaluate again with that threat"
                if str(each.record.threat) in wanted.split(" or "):
                    cause = "its test images are others than the table's; evaluate all rows on the same"
            self.problems.append(f"{each.path} is left out: {cause}")

    def _grid(self, panel: PanelSpec, scale: str) -> Grid:
        lines: list[Line] = []
        data: list[object] = []
        for group, rows in enumerate(panel.groups):
            for row in rows:
                lines += self._lines(panel, scale, row, group, data)
        threat = panel.scales[scale]
        grid = Grid(
            title=panel.title, scale=scale, threat=threat, headings=tuple(panel.columns), lines=tuple(lines),
            axes=panel.axes,
        )  # fmt: skip
        grid, refused = with_tests(grid, panel.reference)
        self.problems += [f"{grid.scale}: {line}" for line in refused]
        return grid

    def _lines(self, panel: PanelSpec, scale: str, row: RowSpec, group: int, data: list[object]) -> list[Line]:
        """Return a row for each checkpoint that was evaluated, the last first; it stands there even if it is empty."""
        by_checkpoint: dict[str, list[Measured | Analysed]] = {LAST: []}
        if row.nearest is not None:
            by_checkpoint[LAST] += [
                each for each in self.analysed
                if self.places[each.run][:2] == (scale, row.experiment) and each.record.kind == "knn"
            ]  # fmt: skip
        else:
            for each in self.measured:
                kept = self.places[each.run]
                if kept.scale != scale or not _fits(row, each, kept) or not each.checkpoint:
                    continue
                if str(each.record.threat) != panel.scales[scale]:
                    continue
                images = each.record.provenance.hashes.get("data")
                data.append(images)
                if images == data[0]:
                    by_checkpoint.setdefault(each.checkpoint, []).append(each)
                    self.used[each.path] = each
        missing = row.reason or " ".join(
            [f"{row.experiment}", *(f"{key}={text}" for key, text in row.settings.items()), f"at scale {scale}"]
        )
        lines = []
        for checkpoint in sorted(by_checkpoint, key=lambda name: (name != LAST, name)):
            own = by_checkpoint[checkpoint]
            cells = [
                Cell(
                    numbers=_numbers(own, heading, row),
                    paper=self.expected.number(row.expected, paper) if checkpoint == LAST else None,
                    notes=self._notes(row, heading) if checkpoint == LAST else (),
                )
                for heading, paper in panel.columns.items()
            ]
            told = "" if row.nearest is not None or row.experiment is None else checkpoint
            lines.append(
                Line(name=row.name, checkpoint=told, group=group, cells=tuple(cells), missing=missing,
                     settings=row.settings)
            )  # fmt: skip
        return lines

    def _notes(self, row: RowSpec, heading: str) -> tuple[int, ...]:
        return tuple(
            place for place, note in enumerate(self.manifest.notes, start=1)
            if (row.expected in note.rows or (not note.rows and row.expected is not None))
            and (heading in note.columns or not note.columns)
        )  # fmt: skip


def _fits(row: RowSpec, each: Measured, kept: Kept) -> bool:
    """Tell whether a record is one of a row's, whatever its threat and images."""
    if row.experiment != kept.experiment or row.settings != settings_of(kept.job) or row.nearest is not None:
        return False
    return each.stem == row.record if row.record else "/" not in each.stem


def _numbers(found: Sequence[Measured | Analysed], heading: str, row: RowSpec) -> tuple[Number, ...]:
    """Return what a row's records say in a column, one number a seed: of several the one of most images."""
    numbers: dict[int, Number] = {}
    for each in found:
        said = _said(each, heading, row)
        if said is not None and (each.seed not in numbers or numbers[each.seed].value.n < said.n):
            record = each.record if isinstance(each, Measured) else None
            numbers[each.seed] = Number(said, each.seed, each.path, record)
    return tuple(numbers[seed] for seed in sorted(numbers))


def _said(each: Measured | Analysed, heading: str, row: RowSpec) -> Value | None:
    if isinstance(each, Measured):
        column = next((column for column in columns_of(each.record) if column.heading == heading), None)
        return None if column is None else value(each.record, column)
    wanted = {**(row.nearest or {}), "k": int(heading.partition("-")[0])}
    for place, option in enumerate(each.record.settings.get("options", ())):
        if option == wanted:
            right = each.record.arrays["predicted"][place] == each.record.arrays["labels"]
            return Value(int(right.sum()), len(right), wilson(int(right.sum()), len(right)))
    return None

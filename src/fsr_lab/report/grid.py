"""The tables of a report as data: numbers with their records, the paper's beside them, tests between rows."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from fsr_lab.core.record import EvaluationRecord
from fsr_lab.report.columns import Value
from fsr_lab.report.expected import Printed
from fsr_lab.report.paired import Paired


class Number(NamedTuple):
    """One measured number and the record that it comes from.

    Attributes:
        value: how many of n, and the interval.
        seed: of the network.
        path: of the record, or of the analysis.
        record: None of an analysis, which has no attacks of its own.
    """

    value: Value
    seed: int
    path: Path
    record: EvaluationRecord | None = None


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What stands in one row and column.

    Attributes:
        numbers: one for each seed; none is not measured.
        paper: what the paper prints there.
        notes: places of the footnotes to it, from 1.
        is_bold: whether it is significantly the highest of its group.
    """

    numbers: tuple[Number, ...] = ()
    paper: Printed | None = None
    notes: tuple[int, ...] = ()
    is_bold: bool = False

    @property
    def mean(self) -> float | None:
        """Over seeds, in percent."""
        return statistics.fmean(number.value.percent for number in self.numbers) if self.numbers else None

    @property
    def sd(self) -> float | None:
        """The sample's standard deviation over seeds, in points; None below two."""
        if len(self.numbers) < 2:
            return None
        return statistics.stdev(number.value.percent for number in self.numbers)

    @property
    def difference(self) -> Decimal | None:
        """Ours less the paper's, in points, to the paper's decimals."""
        if self.mean is None or self.paper is None:
            return None
        return Decimal(repr(self.mean)).quantize(self.paper.value) - self.paper.value

    @property
    def mark(self) -> str:
        """A dagger where a failed check touches one of the numbers."""
        return next((number.value.mark for number in self.numbers if number.value.mark), "")

    def text(self) -> str:
        """Return our number: of one seed the share, of several their mean and standard deviation; "" is unmeasured."""
        if self.mean is None:
            return ""
        spread = "" if self.sd is None else f" ± {self.sd:.2f}"
        return f"{self.mean:.2f}{self.mark}{spread}"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row: a method, and which of its checkpoints.

    Attributes:
        name: of the method.
        checkpoint: "last" is the paper's; "" where there is no choice.
        group: which rows it is tested against: those of the same number.
        cells: under the grid's headings.
        missing: why it is empty, as far as it is.
        settings: of a grid, what varies.
    """

    name: str
    checkpoint: str
    group: int
    cells: tuple[Cell, ...]
    missing: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_measured(self) -> bool:
        """Whether there is any number of ours in it."""
        return any(cell.numbers for cell in self.cells)

    @property
    def title(self) -> str:
        """Name and checkpoint."""
        return f"{self.name} ({self.checkpoint})" if self.checkpoint else self.name


class RowTest(NamedTuple):
    """McNemar's test between two rows in one column, of networks of the same seed.

    Attributes:
        heading: the column.
        checkpoint: of both.
        first: the place of a row in the grid.
        second: of the other one.
        seed: of both networks.
        paired: what it found; the difference is the second's less the first's.
        adjusted: p after Holm's correction for all tests of the grid on the same checkpoint.
    """

    heading: str
    checkpoint: str
    first: int
    second: int
    seed: int
    paired: Paired
    adjusted: float


@dataclass(frozen=True, kw_only=True)
class Grid:
    """One table.

    Attributes:
        title: over it.
        scale: at which it was measured; "" where there are no scales.
        threat: of its numbers, "" if there are none.
        headings: of its columns.
        lines: its rows.
        tests: between rows.
        untested: why some rows could not be compared, a line each.
        axes: overrides that the rows of a grid vary.
    """

    title: str
    scale: str = ""
    threat: str = ""
    headings: tuple[str, ...]
    lines: tuple[Line, ...]
    tests: tuple[RowTest, ...] = ()
    untested: tuple[str, ...] = ()
    axes: tuple[str, ...] = ()

    @property
    def is_measured(self) -> bool:
        """Whether there is any number of ours in it."""
        return any(line.is_measured for line in self.lines)

    @property
    def has_paper(self) -> bool:
        """Whether the paper prints any number of it."""
        return any(cell.paper is not None for line in self.lines for cell in line.cells)

    @property
    def missing(self) -> list[str]:
        """What was not measured, a line for each row that lacks a number: whole rows, or the columns of one."""
        found = []
        for line in self.lines:
            empty = [heading for heading, cell in zip(self.headings, line.cells, strict=True) if not cell.numbers]
            if empty:
                what = "" if len(empty) == len(self.headings) else f": {', '.join(empty)}"
                why = f" ({line.missing})" if line.missing else ""
                found.append(f"{line.title}{what}{why}")
        return found


def measured_grids(grids: Sequence[Grid]) -> list[Grid]:
    """Return the grids with a number of ours in them."""
    return [grid for grid in grids if grid.is_measured]

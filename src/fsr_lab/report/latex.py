"""Grids as LaTeX tables for booktabs."""

from collections.abc import Sequence

from fsr_lab.report.booktabs import PREAMBLE, booktabs, escaped
from fsr_lab.report.grid import Cell, Grid, Line
from fsr_lab.report.grid_text import heading, signed
from fsr_lab.report.manifest import SCALES
from fsr_lab.report.significance import RULE


def grids_latex(grids: Sequence[Grid], notes: Sequence[str] = ()) -> str:
    """Return a table for each grid: our numbers, their intervals, the paper's numbers and the differences.

    Args:
        grids: to lay out.
        notes: footnotes to the paper's numbers, in the order of their places.
    """
    return PREAMBLE + "\n".join(_table(grid, notes) for grid in grids)


def _table(grid: Grid, notes: Sequence[str]) -> str:
    rows: list[str] = []
    group = None
    for line in grid.lines:
        rows.append(r"\midrule" if line.group != group else r"\addlinespace")
        rows += _line(line)
        group = line.group
    used = sorted({place for line in grid.lines for cell in line.cells for place in cell.notes})
    told = [heading(grid) + (f" ({grid.threat})" if grid.scale and grid.is_measured else "")]
    told += [SCALES[grid.scale]] if grid.is_measured and SCALES.get(grid.scale) else []
    told += [RULE] if grid.tests else []
    told += [f"({place}) {notes[place - 1]}" for place in used]
    return booktabs(
        ["", *grid.headings],
        "l" + "r" * len(grid.headings),
        rows,
        " ".join(text if text.endswith(".") else f"{text}." for text in told),
    )


def _line(line: Line) -> list[str]:
    rows = [(escaped(line.title), [_ours(cell) for cell in line.cells])]
    if any(len(cell.numbers) == 1 for cell in line.cells):
        rows.append((r"\quad 95\,\% interval", [_interval(cell) for cell in line.cells]))
    if any(cell.paper for cell in line.cells):
        rows.append((r"\quad paper", [_paper(cell) for cell in line.cells]))
    if any(cell.difference is not None for cell in line.cells):
        differences = ["" if cell.difference is None else escaped(signed(cell.difference)) for cell in line.cells]
        rows.append((r"\quad difference", differences))
    return [f"{name} & {' & '.join(cells)} \\\\" for name, cells in rows]


def _ours(cell: Cell) -> str:
    text = escaped(cell.text())
    return rf"\textbf{{{text}}}" if cell.is_bold else text


def _interval(cell: Cell) -> str:
    if len(cell.numbers) != 1:
        return ""
    low, high = (100 * end for end in cell.numbers[0].value.interval)
    return f"{low:.1f}--{high:.1f}"


def _paper(cell: Cell) -> str:
    if cell.paper is None:
        return ""
    marks = ",".join(str(place) for place in cell.notes)
    return f"{cell.paper.value}" + (rf"\textsuperscript{{{marks}}}" if marks else "")

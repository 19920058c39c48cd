"""A grid as Markdown and as CSV: every number with its record."""

import csv
import io
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from urllib.parse import quote

from fsr_lab.report.grid import Cell, Grid, RowTest
from fsr_lab.report.manifest import SCALES
from fsr_lab.report.sections import linked
from fsr_lab.report.significance import RULE

FIELDS = (
    "table", "scale", "threat", "row", "checkpoint", "column", "seed", "correct", "n", "percent", "low", "high",
    "marks", "mean", "sd", "paper", "difference", "source", "bold", "record",
)  # fmt: skip
TESTS = ("column", "first", "second", "seed", "n", "difference", "only first", "only second", "p", "p, Holm")
TESTS_NOTE = (
    "Difference: the second row's accuracy less the first's, in points, with Newcombe's 95 % interval for paired "
    "proportions; p: McNemar's exact two-sided test on the images that one of the two alone withstands."
)


def heading(grid: Grid) -> str:
    """Return a grid's title with its scale, or where there are none its threat."""
    return f"{grid.title}, scale {grid.scale}" if grid.scale else f"{grid.title}, {grid.threat}"


def grid_markdown(grid: Grid, folder: Path) -> str:
    """Return a grid as GitHub's Markdown, its numbers linked to the records as seen from a folder."""
    kept = SCALES.get(grid.scale, "") if grid.is_measured else ""
    lines = [f"### {heading(grid)}\n", *([f"{kept}\n"] if kept else []), f"| row | {' | '.join(grid.headings)} |",
             "|---|" + "--:|" * len(grid.headings)]  # fmt: skip
    for line in grid.lines:
        cells = " | ".join(_cell(cell, folder) for cell in line.cells)
        lines.append(f"| {line.title} | {cells} |")
    lines.append("")
    if grid.tests:
        lines.append(f"{RULE}\n")
    if grid.missing:
        lines += ["Not measured:\n", *[f"- {text}" for text in grid.missing], ""]
    if grid.untested:
        lines += ["Not compared:\n", *[f"- {text}" for text in grid.untested], ""]
    return "\n".join(lines)


def paired_markdown(grids: Sequence[Grid]) -> str:
    """Return all tests between rows as tables; "" where there are none."""
    parts = []
    for grid in grids:
        if grid.tests:
            rows = [f"| {' | '.join(paired_cells(grid, test))} |" for test in grid.tests]
            parts.append("\n".join([f"{heading(grid)}:\n", f"| {' | '.join(TESTS)} |",
                                    "|---|---|---|" + "--:|" * 7, *rows, ""]))  # fmt: skip
    return "\n".join([*parts, f"{TESTS_NOTE}\n"]) if parts else ""


def paired_cells(grid: Grid, test: RowTest) -> list[str]:
    """Return a test's cells under `TESTS`."""
    low, high = (100 * end for end in test.paired.interval)
    difference = f"{100 * test.paired.difference:+.2f} [{low:+.1f}, {high:+.1f}]"
    return [
        test.heading, grid.lines[test.first].title, grid.lines[test.second].title, str(test.seed), str(test.paired.n),
        difference, str(test.paired.only_first), str(test.paired.only_second), f"{test.paired.p:.2g}",
        f"{test.adjusted:.2g}",
    ]  # fmt: skip


def grids_csv(grids: Sequence[Grid], folder: Path) -> str:
    """Return a line for each number of ours, and one for each cell that has none."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, FIELDS, lineterminator="\n", restval="")
    writer.writeheader()
    for grid in grids:
        for line in grid.lines:
            for column, cell in zip(grid.headings, line.cells, strict=True):
                about = {
                    "table": grid.title, "scale": grid.scale, "threat": grid.threat, "row": line.name,
                    "checkpoint": line.checkpoint, "column": column, **_summary(cell),
                }  # fmt: skip
                for number in cell.numbers:
                    value = number.value
                    writer.writerow(about | {
                        "seed": number.seed, "correct": value.correct, "n": value.n, "percent": f"{value.percent:.4f}",
                        "low": f"{100 * value.interval.low:.4f}", "high": f"{100 * value.interval.high:.4f}",
                        "marks": value.mark, "record": linked(number.path, folder),
                    })  # fmt: skip
                if not cell.numbers:
                    writer.writerow(about)
    return stream.getvalue()


def signed(difference: Decimal) -> str:
    """Return a difference with its sign, a true minus among them."""
    return f"{difference:+}".replace("-", "−") if difference else str(abs(difference))


def interval_text(cell: Cell) -> str:
    """Return the interval of a cell with one number."""
    low, high = (100 * end for end in cell.numbers[0].value.interval)
    return f"[{low:.1f}, {high:.1f}]"


def _summary(cell: Cell) -> dict[str, str]:
    found = {"bold": "bold"} if cell.is_bold else {}
    if cell.mean is not None:
        found["mean"] = f"{cell.mean:.4f}"
    if cell.sd is not None:
        found["sd"] = f"{cell.sd:.4f}"
    if cell.paper is not None:
        found |= {"paper": str(cell.paper.value), "source": cell.paper.where}
    if cell.difference is not None:
        found["difference"] = str(cell.difference)
    return found


def _cell(cell: Cell, folder: Path) -> str:
    text = cell.text()
    if len(cell.numbers) == 1:
        text = f"[{text}]({target(cell.numbers[0].path, folder)})"
    if cell.is_bold:
        text = f"**{text}**"
    if len(cell.numbers) == 1:
        text += f" {interval_text(cell)}"
    elif cell.numbers:
        each = (f"[{number.value.percent:.2f}]({target(number.path, folder)})" for number in cell.numbers)
        text += f" ({', '.join(each)})"
    if cell.paper is None:
        return text
    marks = "".join(f"<sup>{place}</sup>" for place in cell.notes)
    paper = f"paper {cell.paper.value}{marks}"
    difference = "" if cell.difference is None else f" ({signed(cell.difference)})"
    return f"{text}; {paper}{difference}" if text else paper


def target(path: Path, folder: Path) -> str:
    """Return a path as a link from a page in a folder has it."""
    return quote(linked(path, folder), safe="/=,")

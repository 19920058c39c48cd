"""A sweep's table and picture: a pure function of its index."""

import csv
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from rich.markup import escape
from rich.table import Table as RichTable

INDEX, PICTURE = "index.csv", "sweep.png"

FIXED = ("job", "directory", "state", "started", "ended", "seconds", "error")
"""Columns of every index; overrides follow, a column each, then results, whose names begin with these."""
RESULTS = ("val/", "test/")

SEED = "seed"

CUT = 60
"""Characters of an error in a terminal's table; the whole of it is in the index and in the report."""


class Sweep(NamedTuple):
    """A sweep's index.

    Attributes:
        rows: one per job, {column: text}; empty is unknown.
        swept: the overrides in which jobs differ.
        results: what is known of how they ended.
    """

    rows: tuple[dict[str, str], ...]
    swept: tuple[str, ...]
    results: tuple[str, ...]

    @property
    def headings(self) -> tuple[str, ...]:
        """What stands over the table's columns."""
        shown = tuple(f"{name.replace('/', ' ').replace('_', ' ')} %" for name in self.results)
        return ("job", *self.swept, "state", "seconds", *shown, "error")

    @property
    def summary(self) -> str:
        """How many jobs there are in each state."""
        count = Counter(row["state"] for row in self.rows)
        states = ", ".join(f"{number} {state}" for state, number in sorted(count.items()))
        return f"{len(self.rows)} jobs: {states}" if len(self.rows) != 1 else f"1 job: {states}"

    def cells(self, row: dict[str, str]) -> list[str]:
        """Return a row's cells under the headings."""
        shares = [f"{100 * float(row[name]):.2f}" if row[name] else "" for name in self.results]
        return [row["job"], *(row[key] for key in self.swept), row["state"], row["seconds"], *shares, row["error"]]

    def rich(self) -> RichTable:
        """Return the table for a terminal."""
        table = RichTable(caption=self.summary, caption_justify="left", caption_style="dim")
        for heading in self.headings:
            table.add_column(heading, justify="right" if heading.endswith("%") or heading == "seconds" else "left")
        for row in self.rows:
            *cells, error = self.cells(row)
            shown = (*cells, error if len(error) <= CUT else f"{error[:CUT]} ...")
            table.add_row(*(escape(cell) for cell in shown))  # [layer3,layer4] would be taken for markup
        return table

    def markdown(self) -> str:
        """Return the table as GitHub's Markdown."""
        lines = [f"| {' | '.join(self.headings)} |", "|---" * len(self.headings) + "|"]
        for row in self.rows:
            cells = [cell.replace("|", "\\|") for cell in self.cells(row)]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join([*lines, "", f"{self.summary}.", ""])


def read_sweep(folder: Path) -> Sweep | None:
    """Return what a folder's index says, or None where it has none."""
    path = folder / INDEX
    if not path.is_file():
        return None
    with path.open(newline="") as stream:
        reader = csv.DictReader(stream)
        rows, columns = tuple(reader), tuple(reader.fieldnames or ())
    own = [name for name in columns if name not in FIXED and not name.startswith(RESULTS)]
    swept = tuple(name for name in own if len({row[name] for row in rows}) > 1)
    # validation first, and what is called last before what is called best: it is the paper's column
    results = sorted(
        (name for name in columns if name.startswith(RESULTS)),
        key=lambda name: (not name.startswith("val/"), "best" in name, name),
    )
    return Sweep(rows, swept, tuple(results))


def axes_of(sweep: Sweep) -> tuple[str, ...]:
    """Return the overrides that vary and are numbers, which a picture may have as axes; seeds are averaged over."""
    others = [key for key in sweep.swept if key != SEED] or list(sweep.swept)
    return tuple(others) if all(_are_numbers([row[key] for row in sweep.rows]) for key in others) else ()


def shown_result(sweep: Sweep) -> str | None:
    """Return the result that a picture shows: robust test accuracy of the last weights, else of validation."""
    for name in ("test/robust_last", "test/robust_best", "val/robust_acc_best"):
        if name in sweep.results:
            return name
    return None


def points(sweep: Sweep, axes: Sequence[str], result: str) -> dict[tuple[float, ...], list[float]]:
    """Return {place on the axes: a result's values there}, as many as there are seeds, in percent."""
    found: dict[tuple[float, ...], list[float]] = {}
    for row in sweep.rows:
        if row[result] and all(row[key] for key in axes):
            found.setdefault(tuple(_number(row[key]) for key in axes), []).append(100 * float(row[result]))
    return found


def _number(text: str) -> float:
    """Return what a text such as 0.5 or 8/255 is.

    Raises:
        ValueError: it is no number.
    """
    return float(Fraction(text))


def as_number(text: str) -> float | None:
    """Return what a text such as 0.5 or 8/255 is, or None where it is no number."""
    try:
        return _number(text)
    except (ValueError, ZeroDivisionError):
        return None


def _are_numbers(texts: Sequence[str]) -> bool:
    try:
        return bool([_number(text) for text in texts if text])
    except (ValueError, ZeroDivisionError):
        return False

"""Two networks on the same samples: the difference, its interval, and McNemar's test."""

import csv
import io
import json
import math
import re
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.table import Table as RichTable
from scipy.stats import binomtest

from fsr_lab.core.record import EvaluationRecord
from fsr_lab.report.columns import Column, columns_of, limits_of, own_column
from fsr_lab.report.interval import Interval, wilson

NOTE = (
    "Difference: accuracy of the second minus that of the first, in points, on the same n test images, with Newcombe's "
    "95 % interval for paired proportions; p: McNemar's test, exact and two-sided, on the samples that only one of the "
    "two withstands. Each column is a test of its own: no correction is made for their number."
)
KIN = re.compile(r"source=<[^>]*>")
"""What a transfer attack's settings tell of the network that it crafts on."""
FIELDS = ("column", "n", "first", "second", "difference", "low", "high", "only_first", "only_second", "p")


class Paired(NamedTuple):
    """One column's comparison.

    Attributes:
        heading: of the column.
        both: samples that both withstand.
        only_first: samples that the first alone withstands.
        only_second: samples that the second alone withstands.
        neither: the rest.
    """

    heading: str
    both: int
    only_first: int
    only_second: int
    neither: int

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def difference(self) -> float:
        """Second minus first, as a fraction of one."""
        return (self.only_second - self.only_first) / self.n

    @property
    def p(self) -> float:
        """McNemar's exact two-sided p: that of a fair coin for the samples on which the two differ.

        Source: McNemar, 1947, "Note on the sampling error of the difference between correlated proportions".
        """
        discordant = self.only_first + self.only_second
        return float(binomtest(self.only_first, discordant).pvalue) if discordant else 1.0

    @property
    def interval(self) -> Interval:
        """The difference's 95 % interval.

        Source: Newcombe, 1998, "Improved confidence intervals for the difference between binomial proportions based
        on paired data", method 10: Wilson's intervals of both shares, joined with their correlation.
        """
        a, b, c, d = self.both, self.only_second, self.only_first, self.neither
        second, first = (a + b) / self.n, (a + c) / self.n
        (low2, high2), (low1, high1) = wilson(a + b, self.n), wilson(a + c, self.n)
        spread = math.sqrt((a + b) * (c + d) * (a + c) * (b + d))
        agreement: float = a * d - b * c
        if agreement > 0:
            agreement = max(agreement - self.n / 2, 0)  # the method's continuity correction
        phi = agreement / spread if spread else 0.0
        below, above = _joined(second - low2, high1 - first, phi), _joined(high2 - second, first - low1, phi)
        return Interval(self.difference - below, self.difference + above)

    def plain(self) -> dict[str, Any]:
        """Return all of it in percent and points."""
        return {
            "column": self.heading, "n": self.n, "first": 100 * (self.both + self.only_first) / self.n,
            "second": 100 * (self.both + self.only_second) / self.n, "difference": 100 * self.difference,
            "low": 100 * self.interval.low, "high": 100 * self.interval.high, "only_first": self.only_first,
            "only_second": self.only_second, "p": self.p,
        }  # fmt: skip


class Comparison(NamedTuple):
    """Every column that two records share; `unlike` are those whose attacks have other settings in the two."""

    first: str
    second: str
    threat: str
    columns: tuple[Paired, ...]
    unlike: tuple[str, ...] = ()

    def rich(self) -> RichTable:
        """Return the table for a terminal."""
        table = RichTable(caption=NOTE, caption_justify="left", caption_style="dim", title=self.title)
        for heading in ("", "first", "second", "difference", "only first", "only second", "p"):
            table.add_column(heading, justify="right" if heading else "left")
        for column in self.columns:
            table.add_row(*_cells(column))
        return table

    def markdown(self) -> str:
        """Return the table as GitHub's Markdown, with its note."""
        lines = [f"{self.title}\n", "| column | first | second | difference | only first | only second | p |",
                 "|---|--:|--:|--:|--:|--:|--:|"]  # fmt: skip
        lines += [f"| {' | '.join(_cells(column))} |" for column in self.columns]
        return "\n".join(lines) + f"\n\n{NOTE}\n"

    def csv(self) -> str:
        """Return one line per column."""
        stream = io.StringIO()
        writer = csv.DictWriter(stream, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(column.plain() for column in self.columns)
        return stream.getvalue()

    def json(self) -> str:
        """Return everything, machine-readable."""
        columns = [column.plain() for column in self.columns]
        about = {
            "first": self.first,
            "second": self.second,
            "threat": self.threat,
            "columns": columns,
            "unlike": self.unlike,
            "note": NOTE,
        }
        return json.dumps(about, indent=1) + "\n"

    @property
    def title(self) -> str:
        """Which is which."""
        n = self.columns[0].n
        left_out = f"; left out, of other settings in the two: {', '.join(self.unlike)}" if self.unlike else ""
        return f"first: {self.first}; second: {self.second}; {self.threat}, n {n}{left_out}"


def compare(first: EvaluationRecord, second: EvaluationRecord) -> Comparison:
    """Compare two records sample by sample, in every column that both have, of attacks with the same settings.

    Raises:
        ValueError: they are of other samples or another threat.
    """
    for what, mine, theirs in (
        ("samples", first.ids.tolist(), second.ids.tolist()),
        ("labels", first.labels.tolist(), second.labels.tolist()),
        ("data", first.provenance.hashes.get("data"), second.provenance.hashes.get("data")),
        ("threat", str(first.threat), str(second.threat)),
    ):
        if mine != theirs:
            told = f" ({mine} and {theirs})" if isinstance(mine, str | None) else f" ({len(first)} and {len(second)})"
            raise ValueError(f"these records are not of the same {what}{told}; evaluate both alike to compare them")
    shared = [(column, other) for column in columns_of(first) if (other := own_column(second, column)) is not None]
    unlike = [one.heading for one, other in shared if _conditions(first, one) != _conditions(second, other)]
    columns = tuple(
        _paired(one.heading, first.worst_case(one.attacks), second.worst_case(other.attacks))
        for one, other in shared
        if one.heading not in unlike
    )
    return Comparison(first.name, second.name, str(first.threat), columns, tuple(unlike))


def _conditions(record: EvaluationRecord, column: Column) -> tuple[object, ...]:
    """Return what must be the same in two records for a column to be of the same test.

    Attacks that did not concern one of the networks were asked for in both, and their settings are in both. What a
    family's transfer attacks craft on is each network's own kin: its worst case is by the attacks that know it best.
    """
    settings = {
        name: KIN.sub("", text) if "/" in name else text for name, text in record.settings.items()
        if name in column.asked or name.partition("/")[0] in column.asked
    }  # fmt: skip
    limits = limits_of(record, column)
    return settings, limits, record.chunk if limits else None


def _paired(heading: str, one: NDArray[np.bool_], other: NDArray[np.bool_]) -> Paired:
    counts = ((one & other), (one & ~other), (~one & other), (~one & ~other))
    return Paired(heading, *(int(rows.sum()) for rows in counts))


def _joined(one: float, other: float, phi: float) -> float:
    return math.sqrt(max(one * one - 2 * phi * one * other + other * other, 0))


def _cells(column: Paired) -> tuple[str, ...]:
    row = column.plain()
    return (
        column.heading, f"{row['first']:.2f}", f"{row['second']:.2f}",
        f"{row['difference']:+.2f} [{row['low']:+.1f}, {row['high']:+.1f}]", str(column.only_first),
        str(column.only_second), f"{column.p:.2g}",
    )  # fmt: skip

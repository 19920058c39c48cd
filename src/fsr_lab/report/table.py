"""The table of robust accuracies: a pure function of records."""

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from rich.console import Group
from rich.markup import escape
from rich.table import Table as RichTable
from rich.text import Text

from fsr_lab.core.record import EvaluationRecord
from fsr_lab.report.columns import DAGGER, ENSEMBLE_AND_CLEAN, PART, Value, limited_name, steps, united, value
from fsr_lab.report.verdict import verdict

NOTE = "Accuracy in percent on n test images, with Wilson's 95 % interval."
ENSEMBLE_NOTE = (
    " Ensemble: the samples that withstand all of FGSM, PGD-20, PGD-100 and C&W (Eq. 6); ∧ clean: and are right "
    "unattacked, the released code's convention."
)
PART_NOTE = " +: what is right and withstands it; its attacks are run one after another, on what those before it left."
CHAIN_NOTE = (
    " A chain's attacks are run on the samples that are right and withstood those before it; what each of them left "
    "stands under What broke each sample in the report."
)
DAGGER_NOTE = f" {DAGGER}: a check of this evaluation failed, and the number is not to be believed; see the findings."


class Row(NamedTuple):
    """One record's line: what is evaluated, the threat, the number of samples, a value or None for each column."""

    name: str
    threat: str
    n: int
    values: tuple[Value | None, ...]


class Table(NamedTuple):
    """Rows of accuracies under common headings; a missing value is None.

    What is for reading leaves out the steps of a chain, which "What broke each sample" tells of; CSV and JSON have all.

    Attributes:
        headings: of the columns.
        rows: one per record.
        limits: sentences on attacks that were run on a part of the samples.
        verdicts: a sentence for each row, on whether its numbers are real.
        steps: the headings of the columns that are parts of others.
    """

    headings: tuple[str, ...]
    rows: tuple[Row, ...]
    limits: tuple[str, ...] = ()
    verdicts: tuple[str, ...] = ()
    steps: frozenset[str] = frozenset()

    @property
    def note(self) -> str:
        """What the columns and marks mean."""
        note = NOTE
        if ENSEMBLE_AND_CLEAN in self.headings:
            note += ENSEMBLE_NOTE
        if any(heading.startswith(PART) for heading in self._shown):
            note += PART_NOTE
        if self.steps:
            note += CHAIN_NOTE
        note += "".join(f" {limit}" for limit in self.limits)
        if any(value is not None and value.is_doubtful for row in self.rows for value in row.values):
            note += DAGGER_NOTE
        return note

    def rich(self) -> Group:
        """Return the table for a terminal, and under it the verdicts, each with the rows that it is of."""
        table = RichTable(caption=self.note, caption_justify="left", caption_style="dim")
        table.add_column("model")
        table.add_column("threat")
        for heading in ("n", *self._shown):
            table.add_column(heading, justify="right")
        for row in self.rows:
            table.add_row(escape(row.name), row.threat, str(row.n), *[_stacked(value) for value in self._read(row)])
        told: dict[str, list[str]] = {}
        for row, sentence in zip(self.rows, self.verdicts, strict=True):
            told.setdefault(sentence, []).append(row.name)
        return Group(table, *(Text(f"{', '.join(names)}: {sentence}") for sentence, names in told.items()))

    def markdown(self) -> str:
        """Return the table as GitHub's Markdown, with its note."""
        lines = ["| model | threat | n | " + " | ".join(self._shown) + " |",
                 "|---|---|--:|" + "--:|" * len(self._shown)]  # fmt: skip
        for row in self.rows:
            cells = ["" if value is None else str(value) for value in self._read(row)]
            lines.append(f"| {row.name} | {row.threat} | {row.n} | " + " | ".join(cells) + " |")
        return "\n".join(lines) + f"\n\n{self.note}\n"

    def csv(self) -> str:
        """Return one line per value: model, threat, column, correct, n, percent, low, high, marks."""
        stream = io.StringIO()
        writer = csv.DictWriter(stream, FIELDS, lineterminator="\n")
        writer.writeheader()
        for row in self.plain():
            shares = {key: f"{row[key]:.4f}" for key in ("percent", "low", "high")}
            writer.writerow(row | shares)
        return stream.getvalue()

    def plain(self) -> list[dict[str, Any]]:
        """Return one dictionary per value, as the CSV has them; percentages are unrounded."""
        return [
            {
                "model": name, "threat": threat, "column": heading, "correct": value.correct, "n": n,
                "percent": value.percent, "low": 100 * value.interval.low, "high": 100 * value.interval.high,
                "marks": value.mark,
            }
            for name, threat, n, values in self.rows
            for heading, value in zip(self.headings, values, strict=True)
            if value is not None
        ]  # fmt: skip

    @property
    def _shown(self) -> list[str]:
        return [heading for heading in self.headings if heading not in self.steps]

    def _read(self, row: Row) -> list[Value | None]:
        pairs = zip(self.headings, row.values, strict=True)
        return [value for heading, value in pairs if heading not in self.steps]


FIELDS = ("model", "threat", "column", "correct", "n", "percent", "low", "high", "marks")


def accuracy_table(records: Sequence[EvaluationRecord]) -> Table:
    """Return Natural, every attack, both Ensemble conventions where the paper's four were run, and every chain.

    Raises:
        ValueError: there is no record.
    """
    if not records:
        raise ValueError("no evaluation record to make a table of; run fsr train or fsr evaluate first")
    columns = united(records)
    names = Counter(record.name for record in records)
    rows = tuple(
        Row(
            f"{record.name}, seed {record.provenance.seed}" if names[record.name] > 1 else record.name,
            str(record.threat),
            len(record),
            tuple(value(record, column) for column in columns),
        )
        for record in records
    )
    verdicts = tuple(verdict(record).sentence for record in records)
    headings = tuple(column.heading for column in columns)
    parts = frozenset(column.heading for column in steps(columns))
    return Table(headings, rows, tuple(_limits(records)), verdicts, parts)


def _limits(records: Sequence[EvaluationRecord]) -> Iterator[str]:
    """Yield a sentence for each limit of an attack or family, which names the records unless it is that of all."""
    named_records: dict[tuple[str, int], list[str]] = {}
    for record in records:
        for limited in record.limits.items():
            named_records.setdefault(limited, []).append(record.name)
    for (name, samples), of in named_records.items():
        whose = "" if len(of) == sum(bool(record.members(name)) for record in records) else f" of {', '.join(of)}"
        yield f"{limited_name(name, samples)}{whose}; the others count as withstanding it."


def _stacked(value: Value | None) -> str:
    if value is None:
        return ""
    low, high = (100 * end for end in value.interval)
    return f"{value.percent:.2f}{value.mark}\n[dim]{low:.1f}–{high:.1f}[/dim]"

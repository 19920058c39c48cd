"""The table of robust accuracies: a pure function of records."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from rich.table import Table as RichTable

from fsr_lab.core.record import CLEAN, PAPER_FOUR, EvaluationRecord
from fsr_lab.report.interval import Interval, wilson

HEADINGS = {CLEAN: "Natural", "fgsm": "FGSM", "pgd20": "PGD-20", "pgd100": "PGD-100", "cw30": "C&W"}
ENSEMBLE, ENSEMBLE_AND_CLEAN = "Ensemble", "Ensemble ∧ clean"
NOTE = "Accuracy in percent on n test images, with Wilson's 95 % interval."
ENSEMBLE_NOTE = (
    " Ensemble: the samples that withstand all of FGSM, PGD-20, PGD-100 and C&W (Eq. 6); ∧ clean: and are right "
    "unattacked, the released code's convention."
)


class Value(NamedTuple):
    """One accuracy: how many of n samples, and the interval of the share."""

    correct: int
    n: int
    interval: Interval

    def __str__(self) -> str:
        return f"{self.percent:.2f} [{100 * self.interval.low:.1f}, {100 * self.interval.high:.1f}]"

    @property
    def percent(self) -> float:
        """The share in percent."""
        return 100 * self.correct / self.n


class Table(NamedTuple):
    """Rows of accuracies under common headings; a missing value is None.

    Attributes:
        headings: of the value columns.
        rows: (name, threat, n, values).
    """

    headings: tuple[str, ...]
    rows: tuple[tuple[str, str, int, tuple[Value | None, ...]], ...]

    @property
    def note(self) -> str:
        """What the columns mean."""
        return NOTE + (ENSEMBLE_NOTE if ENSEMBLE in self.headings else "")

    def rich(self) -> RichTable:
        """Return the table for a terminal."""
        table = RichTable(caption=self.note, caption_justify="left", caption_style="dim")
        table.add_column("model")
        table.add_column("threat")
        for heading in ("n", *self.headings):
            table.add_column(heading, justify="right")
        for name, threat, n, values in self.rows:
            table.add_row(name, threat, str(n), *[_stacked(value) for value in values])
        return table

    def markdown(self) -> str:
        """Return the table as GitHub's Markdown, with its note."""
        lines = ["| model | threat | n | " + " | ".join(self.headings) + " |",
                 "|---|---|--:|" + "--:|" * len(self.headings)]  # fmt: skip
        for name, threat, n, values in self.rows:
            cells = ["" if value is None else str(value) for value in values]
            lines.append(f"| {name} | {threat} | {n} | " + " | ".join(cells) + " |")
        return "\n".join(lines) + f"\n\n{self.note}\n"

    def csv(self) -> str:
        """Return one line per value: model, threat, column, correct, n, percent, low, high."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["model", "threat", "column", "correct", "n", "percent", "low", "high"])
        for name, threat, _, values in self.rows:
            for heading, value in zip(self.headings, values, strict=True):
                if value is not None:
                    ends = [f"{100 * end:.4f}" for end in value.interval]
                    writer.writerow([name, threat, heading, value.correct, value.n, f"{value.percent:.4f}", *ends])
        return stream.getvalue()


def accuracy_table(records: Sequence[EvaluationRecord]) -> Table:
    """Return Natural, every attack, and both Ensemble conventions where the paper's four attacks were run.

    Raises:
        ValueError: there is no record.
    """
    if not records:
        raise ValueError("no evaluation record to make a table of; run fsr train or fsr evaluate first")
    attacks = list(dict.fromkeys(name for record in records for name in record.attacks))
    with_ensemble = any(_has_ensemble(record) for record in records)
    names = Counter(record.name for record in records)
    headings = [HEADINGS.get(name, name) for name in attacks]
    rows = tuple(
        (
            f"{record.name}, seed {record.provenance.seed}" if names[record.name] > 1 else record.name,
            str(record.threat),
            len(record),
            (
                *(_value(record, (name,)) if name in record.attacks else None for name in attacks),
                *((_ensemble(record, PAPER_FOUR), _ensemble(record, (CLEAN, *PAPER_FOUR))) if with_ensemble else ()),
            ),
        )
        for record in records
    )
    return Table((*headings, *((ENSEMBLE, ENSEMBLE_AND_CLEAN) if with_ensemble else ())), rows)


def _has_ensemble(record: EvaluationRecord) -> bool:
    return set(PAPER_FOUR) <= set(record.attacks)


def _ensemble(record: EvaluationRecord, names: tuple[str, ...]) -> Value | None:
    return _value(record, names) if _has_ensemble(record) else None


def _value(record: EvaluationRecord, names: tuple[str, ...]) -> Value:
    correct, n = int(record.worst_case(names).sum()), len(record)
    return Value(correct, n, wilson(correct, n))


def _stacked(value: Value | None) -> str:
    if value is None:
        return ""
    return f"{value.percent:.2f}\n[dim]{100 * value.interval.low:.1f}–{100 * value.interval.high:.1f}[/dim]"

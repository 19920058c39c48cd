"""The table of costs, with the paper's figures beside ours: a pure function of records and an expected.json."""

import csv
import io
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from rich.table import Table as RichTable

from fsr_lab.core.cost import Cost, CostRecord, CostRow
from fsr_lab.core.files import write_text
from fsr_lab.report.expected_cost import SCALES, ExpectedCosts, Figure

RECORD, EXPECTED = "costs.json", "expected.json"
HEADINGS = ("model", "defence", "image", "K", "parameters", "of the defence", "FLOPs (G)", "MACs (G)", "with heads (G)")
TEXT = ("model", "defence", "image", "reason")
PAPER = {"parameters": "paper's params (M)", "flops": "paper's FLOPs (G)"}
NOTE = (
    "For one image. FLOPs in the paper's convention: twice the sum of multiply-accumulates and bias additions of "
    "convolutions and linear layers, two operations per output of a BatchNorm, one per output of a ReLU module and one "
    "per input of a pooling module; auxiliary heads run. MACs: multiply-accumulates by torch's counter, of the "
    "deployed network, and with the auxiliary heads that run in training."
)


class CostTable(NamedTuple):
    """Rows of costs, and beside them what the paper prints.

    Attributes:
        rows: what was counted.
        figures: for each row, the figures that the paper has of it: often none.
        source: of the figures.
    """

    rows: tuple[CostRow, ...]
    figures: tuple[Mapping[str, Figure], ...]
    source: str = ""

    @property
    def note(self) -> str:
        """What the columns mean, and how many of the paper's figures come out."""
        return "\n\n".join([NOTE, *self._verdict()])

    @property
    def headings(self) -> tuple[str, ...]:
        """Of all columns; the paper's and the reasons only where there are any."""
        paper = [text for name in SCALES for text in (PAPER[name], "difference")] if any(self.figures) else []
        return (*HEADINGS, *paper, *(["reason"] if any(row.reason for row in self.rows) else []))

    def rich(self) -> RichTable:
        """Return the table for a terminal."""
        table = RichTable(caption=self.note, caption_justify="left", caption_style="dim")
        for heading in self.headings:
            table.add_column(heading, justify="left" if heading in TEXT else "right", overflow="fold")
        for cells in self._cells():
            table.add_row(*cells)
        return table

    def markdown(self) -> str:
        """Return the table as GitHub's Markdown, with its note."""
        rule = "|".join("---" if heading in TEXT else "--:" for heading in self.headings)
        lines = ["| " + " | ".join(self.headings) + " |", f"|{rule}|"]
        lines += ["| " + " | ".join(text.replace("|", "\\|") for text in cells) + " |" for cells in self._cells()]
        return "\n".join(lines) + f"\n\n{self.note}\n"

    def csv(self) -> str:
        """Return one line per row, every count exact."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        paper = [f"{word}_{name}" for name in SCALES for word in ("paper", "difference")]
        writer.writerow(["model", "defense", "settings", "image_shape", "num_classes", *Cost._fields, *paper, "reason"])
        for row, figures in zip(self.rows, self.figures, strict=True):
            counts = row.cost or [""] * len(Cost._fields)
            settings = " ".join(row.settings)
            writer.writerow([row.model, row.defense, settings, _image(row), row.num_classes, *counts,
                             *_beside(figures), row.reason])  # fmt: skip
        return stream.getvalue()

    def _cells(self) -> list[list[str]]:
        lines = []
        for row, figures in zip(self.rows, self.figures, strict=True):
            cells = [row.model, " ".join((row.defense, *row.settings)), _image(row), str(row.num_classes)]
            cells += _counts(row.cost) + (_beside(figures) if any(self.figures) else []) + [row.reason]
            lines.append(cells[: len(self.headings)])
        return lines

    def _verdict(self) -> list[str]:
        pairs = zip(self.rows, self.figures, strict=True)
        found = [(row, name, figure) for row, figures in pairs for name, figure in figures.items()]
        if not found:
            return []
        differing = [(row, name, figure) for row, name, figure in found if figure.difference]
        equal = f"{len(found) - len(differing)} of the {len(found)} figures compared with {self.source}"
        return [
            f"{equal} come out to the last decimal printed there.",
            *[
                f"{row.model} + {row.defense}, {name}: {figure.ours} here, {figure.paper} there, "
                f"{_signed(figure.difference)}. {figure.reason or 'The reason is not known.'}"
                for row, name, figure in differing
            ],
        ]


def find_costs(folder: Path) -> list[CostRecord]:
    """Return every cost record below a folder, in the order of their paths."""
    return [CostRecord.load(path) for path in sorted(folder.glob(f"**/{RECORD}"))]


def cost_table(records: Sequence[CostRecord], expected: ExpectedCosts | None) -> CostTable:
    """Lay out the rows of records, beside the paper's figures where there are some.

    Raises:
        ValueError: there is no row, or none could be counted; the reason of the first.
    """
    rows = tuple(row for record in records for row in record.rows)
    if all(row.cost is None for row in rows):
        raise ValueError(
            rows[0].reason if rows else "no backbone under a defence to count; name one, as model=resnet18"
        )
    if expected is None:
        return CostTable(rows, ({},) * len(rows))
    return CostTable(rows, tuple(map(expected.compare, rows)), expected.source)


def write_cost_report(folder: Path) -> tuple[CostTable, Path]:
    """Write report.md and table.csv of the cost records below a folder; the same records give the same bytes."""
    records = find_costs(folder)
    expected, notes = folder / EXPECTED, folder / "notes.md"
    table = cost_table(records, ExpectedCosts.load(expected) if expected.is_file() else None)
    text = "\n".join([
        f"# {folder.resolve().name}\n",
        *([notes.read_text()] if notes.is_file() else []),
        "## Cost\n",
        table.markdown(),
        "## Provenance\n",
        *map(_provenance, records),
    ])  # fmt: skip
    write_text(folder / "table.csv", table.csv())
    write_text(folder / "report.md", text)
    return table, folder / "report.md"


def _counts(cost: Cost | None) -> list[str]:
    if cost is None:
        return [""] * len(Cost._fields)
    billions = [f"{count / 10**9:.4f}" for count in (cost.flops, cost.macs, cost.macs_with_aux)]
    return [f"{cost.parameters:,}", f"{cost.defense_parameters:,}", *billions]


def _beside(figures: Mapping[str, Figure]) -> list[str]:
    cells = []
    for name in SCALES:
        figure = figures.get(name)
        cells += ["", ""] if figure is None else [str(figure.paper), _signed(figure.difference)]
    return cells


def _signed(difference: Decimal) -> str:
    return f"{difference:+}" if difference else str(difference)


def _image(row: CostRow) -> str:
    return "x".join(map(str, row.image_shape))


def _provenance(record: CostRecord) -> str:
    about = record.provenance
    revision = (about.revision[:10] or "installed") + (" (modified)" if about.dirty else "")
    versions = ", ".join(f"{name} {about.versions[name]}" for name in ("fsr-lab", "python", "torch"))
    return f"    {about.command}\n\nRevision {revision}; {versions}.\n"

"""The table of costs, and the paper's figures beside ours: a pure function of records and an expected.json."""

import csv
import io
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from rich.console import Group
from rich.table import Table as RichTable

from fsr_lab.core.cost import Cost, CostRecord, CostRow
from fsr_lab.core.files import write_text
from fsr_lab.report.booktabs import PREAMBLE, latex_table
from fsr_lab.report.expected_cost import SCALES, ExpectedCosts, Figure

RECORD, EXPECTED = "costs.json", "expected.json"
HEADINGS = ("model", "defence", "image", "K", "parameters", "of the defence", "FLOPs (G)", "MACs (M)", "with heads (M)")
BESIDE = ("model", "defence", "params (M)", "paper", "difference", "FLOPs (G)", "paper", "difference")
TEXT = ("model", "defence", "image", "reason")
NOTE = (
    "For one image. FLOPs in the paper's convention: twice the sum of multiply-accumulates and bias additions of "
    "convolutions and linear layers, two operations per output of a BatchNorm, one per output of a ReLU module and one "
    "per input of a pooling module; auxiliary heads run. MACs: multiply-accumulates by torch's counter, of the "
    "deployed network, and with the auxiliary heads that run in training."
)


class CostTable(NamedTuple):
    """Rows of costs, and what the paper prints of some of them.

    Attributes:
        rows: what was counted.
        figures: for each row, the figures that the paper has of it: often none.
        source: of the figures.
    """

    rows: tuple[CostRow, ...]
    figures: tuple[Mapping[str, Figure], ...]
    source: str = ""

    @property
    def headings(self) -> tuple[str, ...]:
        """Of the rows' columns; reasons only where a row has one."""
        return (*HEADINGS, *(["reason"] if any(row.reason for row in self.rows) else []))

    @property
    def verdict(self) -> str:
        """How many of the paper's figures come out, and why the others do not; empty if none was compared."""
        found = [(row, name, figure) for row, figures in self._compared() for name, figure in figures.items()]
        if not found:
            return ""
        differing = [(row, name, figure) for row, name, figure in found if figure.difference]
        equal = f"{len(found) - len(differing)} of the {len(found)} figures compared with {self.source}"
        reasons = [
            f"{row.model} + {row.defense}, {name}: {figure.ours} here, {figure.paper} there, "
            f"{_signed(figure.difference)}. {figure.reason or 'The reason is not known.'}"
            for row, name, figure in differing
        ]
        return "\n\n".join([f"{equal} come out to the last decimal printed there.", *reasons])

    def rich(self) -> Group:
        """Return the tables for a terminal."""
        parts = [_rich(self.headings, self._cells(), NOTE)]
        if self.verdict:
            parts.append(_rich(BESIDE, self._beside(), self.verdict))
        return Group(*parts)

    def markdown(self) -> str:
        """Return the tables as GitHub's Markdown, with what they mean."""
        parts = [_markdown(self.headings, self._cells()), NOTE]
        if self.verdict:
            parts += [_markdown(BESIDE, self._beside()), self.verdict]
        return "\n\n".join(parts) + "\n"

    def csv(self) -> str:
        """Return one line per row, every count exact."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        paper = [f"{word}_{name}" for name in SCALES for word in ("paper", "difference")]
        writer.writerow(["model", "defense", "settings", "image_shape", "num_classes", *Cost._fields, *paper, "reason"])
        for row, figures in zip(self.rows, self.figures, strict=True):
            counts = row.cost or [""] * len(Cost._fields)
            beside = [text for name in SCALES for text in _figure(figures.get(name))[1:]]
            settings = " ".join(row.settings)
            writer.writerow([row.model, row.defense, settings, _image(row), row.num_classes, *counts, *beside,
                             row.reason])  # fmt: skip
        return stream.getvalue()

    def latex(self) -> str:
        """Return the tables for LaTeX's booktabs."""
        tables = [latex_table(self.headings, self._cells(), NOTE, texts=TEXT)]
        if self.verdict:
            tables.append(latex_table(BESIDE, self._beside(), self.verdict, texts=TEXT))
        return PREAMBLE + "\n".join(tables)

    def _compared(self) -> list[tuple[CostRow, Mapping[str, Figure]]]:
        return [(row, figures) for row, figures in zip(self.rows, self.figures, strict=True) if figures]

    def _cells(self) -> list[list[str]]:
        lines = [
            [row.model, " ".join((row.defense, *row.settings)), _image(row), str(row.num_classes), *_counts(row.cost),
             row.reason]
            for row in self.rows
        ]  # fmt: skip
        return [cells[: len(self.headings)] for cells in lines]

    def _beside(self) -> list[list[str]]:
        return [
            [row.model, row.defense, *(text for name in SCALES for text in _figure(figures.get(name)))]
            for row, figures in self._compared()
        ]


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
    table, sections = cost_sections(folder)
    notes = folder / "notes.md"
    text = "\n".join([
        f"# {folder.resolve().name}\n",
        *([notes.read_text()] if notes.is_file() else []),
        *[part for title, section in sections for part in (f"## {title}\n", section)],
    ])  # fmt: skip
    write_text(folder / "table.csv", table.csv())
    write_text(folder / "report.md", text)
    return table, folder / "report.md"


def cost_sections(folder: Path) -> tuple[CostTable, list[tuple[str, str]]]:
    """Return the table of the cost records below a folder, and (title, Markdown) of what a report says of them."""
    paths = sorted(folder.glob(f"**/{RECORD}"))
    records, expected = [CostRecord.load(path) for path in paths], folder / EXPECTED
    table = cost_table(records, ExpectedCosts.load(expected) if expected.is_file() else None)
    places = [path.relative_to(folder).as_posix() for path in paths]
    about = "\n".join(_provenance(record, place) for record, place in zip(records, places, strict=True))
    return table, [("Cost", table.markdown()), ("Provenance", about)]


def _counts(cost: Cost | None) -> list[str]:
    if cost is None:
        return [""] * len(Cost._fields)
    macs = [f"{count / 10**6:,.2f}" for count in (cost.macs, cost.macs_with_aux)]
    return [f"{cost.parameters:,}", f"{cost.defense_parameters:,}", f"{cost.flops / 10**9:.4f}", *macs]


def _figure(figure: Figure | None) -> list[str]:
    return ["", "", ""] if figure is None else [str(figure.ours), str(figure.paper), _signed(figure.difference)]


def _signed(difference: Decimal) -> str:
    return f"{difference:+}" if difference else str(difference)


def _rich(headings: Sequence[str], lines: Sequence[Sequence[str]], caption: str) -> RichTable:
    table = RichTable(caption=caption, caption_justify="left", caption_style="dim")
    for heading in headings:
        is_text = heading in TEXT
        # numbers stay whole; what does not fit is folded in the columns of words
        table.add_column(heading, justify="left" if is_text else "right", no_wrap=not is_text, overflow="fold")
    for cells in lines:
        table.add_row(*cells)
    return table


def _markdown(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = "|".join("---" if heading in TEXT else "--:" for heading in headings)
    rows = [" | ".join(text.replace("|", "\\|") for text in cells) for cells in (headings, *lines)]
    return "\n".join([f"| {rows[0]} |", f"|{rule}|", *[f"| {row} |" for row in rows[1:]]])


def _image(row: CostRow) -> str:
    return "x".join(map(str, row.image_shape))


def _provenance(record: CostRecord, place: str) -> str:
    about = record.provenance
    revision = (about.revision[:10] or "installed") + (" (modified)" if about.dirty else "")
    versions = ", ".join(f"{name} {about.versions[name]}" for name in ("fsr-lab", "python", "torch"))
    return f"    {about.command}\n\n[{place}]({place}), revision {revision}; {versions}.\n"

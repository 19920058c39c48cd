"""A report as one HTML page that needs no network: styles, script, plots and images are in it."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from fsr_lab.report.analyses import Shown
from fsr_lab.report.gallery import Gallery, Picture
from fsr_lab.report.grid import Grid, Line, Number
from fsr_lab.report.grid_text import TESTS, TESTS_NOTE, heading, paired_cells, signed, target
from fsr_lab.report.manifest import SCALES
from fsr_lab.report.plots import Plot
from fsr_lab.report.sections import linked
from fsr_lab.report.significance import RULE
from fsr_lab.report.verdict import verdict

TEMPLATES = files("fsr_lab.report").joinpath("templates")
VERDICTS = ("masked", "not tested", "no sign of masking")
"""The worst first: of several networks in one row, it is the row's."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """What a page shows.

    Attributes:
        folder: that it lies in, from which its links lead.
        name: of what it is about.
        title: of the page.
        lead: Markdown at the top.
        source: what the numbers are held against.
        make: the command that measures them.
        problems: what was left out, and why.
        grids: tables.
        footnotes: to the paper's numbers.
        missing: what else was not measured.
        plots: inline.
        analyses: sections of their own.
        galleries: images.
        pictures: that a run kept, where it did not keep what they were drawn from.
        sections: (title, Markdown) of the rest.
    """

    folder: Path
    name: str
    title: str
    lead: str = ""
    source: str = ""
    make: str = ""
    problems: Sequence[str] = ()
    grids: Sequence[Grid] = ()
    footnotes: Sequence[str] = ()
    missing: Sequence[str] = ()
    plots: Sequence[Plot] = ()
    analyses: Sequence[Shown] = ()
    galleries: Sequence[Gallery] = ()
    pictures: Sequence[Picture] = ()
    sections: Sequence[tuple[str, str]] = ()


def rendered(page: Page) -> str:
    """Return the page; equal content gives equal bytes."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters |= {
        "images": _images, "judged": _judged, "linked": partial(linked, folder=page.folder), "markdown": _markdown,
        "signed": signed, "slug": _slug, "target": partial(target, folder=page.folder),
    }  # fmt: skip
    tests = [(heading(grid), [paired_cells(grid, test) for test in grid.tests]) for grid in page.grids if grid.tests]
    values = list(_values(page.grids))
    cells = [cell for grid in page.grids for line in grid.lines for cell in line.cells]
    titles = [
        *(["Accuracy"] if page.grids else []), *(["Not measured"] if page.missing else []),
        *(["Plots"] if page.plots else []), *[part.title for part in page.analyses],
        *(["Images"] if page.galleries or page.pictures else []), *(["Paired tests"] if tests else []),
        *[title for title, _ in page.sections], *(["Every number"] if values else []),
    ]  # fmt: skip
    return environment.from_string(_template("page.html.j2")).render(
        page=page, scales=SCALES, titles=titles, tests=tests, tests_headings=TESTS, tests_note=TESTS_NOTE,
        values=values, rule=RULE,
        style=Markup(_template("page.css").strip()), script=Markup(_template("sort.js").strip()),
        measured=any(grid.is_measured for grid in page.grids), has_paper=any(grid.has_paper for grid in page.grids),
        has_seeds=any(len(cell.numbers) > 1 for cell in cells), has_doubts=any(cell.mark for cell in cells),
    )  # fmt: skip


def _template(name: str) -> str:
    return TEMPLATES.joinpath(name).read_text(encoding="utf-8")


def _markdown(text: str) -> Markup:
    """Return Markdown as HTML; what looks like HTML in it is shown as text."""
    found: str = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    found = found.replace("<table>", '<div class="scroll"><table>').replace("</table>", "</table></div>")
    # a section's own headings stand below the page's, and a check's explanation is linked to by its name
    found = re.sub(r"<h3>(.*?)</h3>", lambda match: f'<h3 id="{_slug(match[1])}">{match[1]}</h3>', found)
    return Markup(found)


def _slug(text: str) -> str:
    return re.sub(r"[^\w]+", "-", text.lower()).strip("-")


def _judged(line: Line) -> str:
    """Return the doctor's word on a row's networks; "" where there is no record of an evaluation."""
    records = {id(number.record): number.record for cell in line.cells for number in cell.numbers}
    kinds = {verdict(record).kind for record in records.values() if record is not None}
    return next((kind for kind in VERDICTS if kind in kinds), "")


def _images(grid: Grid) -> list[str]:
    """Return how many test images the numbers are of, and which seeds."""
    numbers = [number for line in grid.lines for cell in line.cells for number in cell.numbers]
    counts = sorted({number.value.n for number in numbers})
    seeds = sorted({number.seed for number in numbers})
    if not numbers:
        return []
    images = [f"n = {' or '.join(f'{count:,}' for count in counts)}"] if grid.scale else []  # else it is the title
    return [*images, f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"]


def _values(grids: Sequence[Grid]) -> Iterator[tuple[str, str, str, Number]]:
    for grid in grids:
        for line in grid.lines:
            for column, cell in zip(grid.headings, line.cells, strict=True):
                for number in cell.numbers:
                    yield heading(grid), line.title, column, number

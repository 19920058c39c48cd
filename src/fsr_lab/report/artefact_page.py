"""What `fsr report` writes of an artefact folder: page.html, report.md, table.tex and table.csv."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Group
from rich.markup import escape
from rich.table import Table as RichTable
from rich.text import Text

from fsr_lab.core.files import write_text
from fsr_lab.report.analyses import Shown, all_shown
from fsr_lab.report.artefact import Artefact, read_artefact
from fsr_lab.report.gallery import Gallery, run_galleries
from fsr_lab.report.gather import Measured
from fsr_lab.report.grid import Grid
from fsr_lab.report.grid_text import grid_markdown, grids_csv, heading, paired_markdown, target
from fsr_lab.report.html import Page, rendered
from fsr_lab.report.latex import grids_latex
from fsr_lab.report.manifest import SCALES
from fsr_lab.report.plots import against_eps, against_steps, over_settings, training_curves
from fsr_lab.report.sections import record_sections, told_apart

PAGE, MARKDOWN, LATEX, CSV = "page.html", "report.md", "table.tex", "table.csv"


def write_artefact(folder: Path, *, runs: Path | None = None, out: Path | None = None) -> tuple[Group, Path, list[str]]:
    """Write an artefact's report from its records, and return its tables, where the page lies, and what was left out.

    Args:
        folder: with manifest.yaml and expected.json.
        runs: the folder of runs to look into instead of what the artefact keeps.
        out: where to write; None is the folder itself.

    Raises:
        ValueError: the manifest or the paper's numbers are missing or damaged.
    """
    artefact, out = read_artefact(folder, runs), folder if out is None else out
    analyses, galleries, problems = _looked_at(artefact)
    problems = [*artefact.problems, *problems]
    notes = [note.text for note in artefact.manifest.notes]
    lead = (folder / "notes.md").read_text() if (folder / "notes.md").is_file() else ""
    own = told_apart(out, [(each.path, each.record) for each in artefact.measured])
    sections = record_sections(out, own)
    page = Page(
        folder=out, name=folder.resolve().name, title=artefact.manifest.title, lead=lead,
        source=artefact.expected.source, make=artefact.manifest.make, problems=problems, grids=artefact.grids,
        footnotes=notes, missing=artefact.missing, plots=_plots(artefact), analyses=analyses, galleries=galleries,
        sections=sections,
    )  # fmt: skip
    write_text(out / PAGE, rendered(page))
    if artefact.grids:
        write_text(out / LATEX, grids_latex(artefact.grids, notes))
        write_text(out / CSV, grids_csv(artefact.grids, out))
    write_text(out / MARKDOWN, _markdown(page, artefact))
    return _rich(artefact.grids), out / PAGE, problems


def _plots(artefact: Artefact) -> list:  # type: ignore[type-arg]
    measured: Sequence[Measured] = artefact.measured
    varied = [plot for grid in artefact.grids if grid.axes for plot in over_settings(grid)]
    return [*varied, *against_eps(measured), *against_steps(measured), *training_curves(artefact.runs)]


def _looked_at(artefact: Artefact) -> tuple[list[Shown], list[Gallery], list[str]]:
    """Return the sections of analyses, the images of runs, and a line for each that could not be shown."""
    scales = {each.path: scale for scale, each in artefact.analysed}
    found, problems = all_shown([each for _, each in artefact.analysed])
    sections = [_at_scale(section, scales[section.path]) for section in found if section.path is not None]
    galleries, unread = run_galleries(artefact.runs)
    return sections, galleries, [*problems, *unread]


def _at_scale(section: Shown, scale: str) -> Shown:
    """Return a section that tells its scale, and what is to be kept in mind of it."""
    note = f"{SCALES[scale]}\n\n" if SCALES[scale] else ""
    return section._replace(title=f"{section.title}, scale {scale}", text=note + section.text)


def _markdown(page: Page, artefact: Artefact) -> str:
    parts = [f"# {page.title}\n", f"Held against: {page.source}. Measured by `{page.make or 'nothing yet'}`.\n"]
    parts += [page.lead] if page.lead else []
    if page.problems:
        parts += ["## Left out\n", *[f"- {text}" for text in page.problems], ""]
    parts += ["## Accuracy\n"] if page.grids else []
    parts += [grid_markdown(grid, page.folder) for grid in page.grids]
    if page.footnotes:
        parts += [f"<sup>{place}</sup> {text}\n" for place, text in enumerate(page.footnotes, start=1)]
    if page.missing:
        parts += ["## Not measured\n", *[f"- {text}" for text in page.missing], ""]
    for part in page.analyses:
        parts += [f"## {part.title}\n", part.text]
        parts += [f"Record: [{part.path.name}]({target(part.path, page.folder)}).\n"] if part.path else []
    if told := paired_markdown(page.grids):
        parts += ["## Paired tests\n", told]
    for title, text in page.sections:
        parts += [f"## {title}\n", text]
    return "\n".join(parts)


def _rich(grids: Sequence[Grid]) -> Group:
    """Return the tables for a terminal: our numbers over the paper's."""
    found: list[RichTable | Text] = []
    for grid in grids:
        table = RichTable(title=heading(grid), title_justify="left")
        table.add_column("row")
        for name in grid.headings:
            table.add_column(name, justify="right")
        for line in grid.lines:
            cells = []
            for cell in line.cells:
                ours = f"[bold]{cell.text()}[/bold]" if cell.is_bold else cell.text()
                paper = "" if cell.paper is None else f"[dim]paper {cell.paper.value}[/dim]"
                cells.append(f"{ours}\n{paper}" if paper else ours)
            table.add_row(escape(line.title), *cells)  # a list in it is no markup
        found.append(table)
    return Group(*found)

"""What a command leaves to look at: pictures drawn, reports written, tables printed."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

PIPE_WIDTH = 400
"""Of tables that go into a file or a pipe, which has no width of its own: wide enough that none is cut."""


def draw_run(run: Path, *, title: str) -> None:
    """Draw a run's learning curves and sample images."""
    import numpy as np

    from fsr_lab.report import figures

    if curves := figures.read_curves(run):
        figures.draw_curves(curves, run / "curves.png", title=title)
    if (run / "samples.npz").is_file():
        with np.load(run / "samples.npz", allow_pickle=False) as samples:
            figures.draw_samples(samples, run / "samples.png", title=f"{title}, {samples['attack']}")


def draw_sweep(folder: Path) -> None:
    """Draw what a sweep's numbers did, where one or two of them varied."""
    from fsr_lab.report import landscape

    landscape.draw_sweep(folder)


def print_report(folder: Path) -> list[str]:
    """Write a folder's report and print its table and where it lies; of a sweep, how its jobs fared before that.

    Returns:
        A line of cause and cure for each file that could not be read.
    """
    from fsr_lab.report.cost import write_cost_report
    from fsr_lab.report.page import write_report

    if not shown_jobs(folder):
        return []
    if holds_costs(folder):
        costs, path = write_cost_report(folder)
        show(costs.rich())
        print(f"report: {path}")
        return []
    report = write_report(folder)
    show(report.table.rich())
    print(f"report: {report.path}")
    return list(report.problems)


def print_pages(folder: Path, places: Sequence[Path] = ()) -> list[str]:
    """Write a folder's report, and with it the page and the LaTeX table; print likewise.

    Args:
        folder: where to write.
        places: where to look; none is the folder itself.

    Returns:
        As of `print_report`.
    """
    from fsr_lab.report.folder_page import write_cost_page, write_folder

    if not places and not shown_jobs(folder):
        return []
    if not places and holds_costs(folder):
        costs, report_path, page = write_cost_page(folder)
        show(costs.rich())
        print(f"page: {page}\nreport: {report_path}")
        return []
    report, page = write_folder(folder, places)
    show(report.table.rich())
    print(f"page: {page}\nreport: {report.path}")
    return list(report.problems)


def print_artefact(folder: Path, *, runs: Path | None, out: Path | None) -> list[str]:
    """Write an artefact's report, print its tables and where the page lies, and return what was left out."""
    from fsr_lab.report.artefact_page import write_artefact

    tables, page, problems = write_artefact(folder, runs=runs, out=out)
    show(tables)
    print(f"page: {page}")
    return problems


def shown_jobs(folder: Path) -> bool:
    """Draw and print how a sweep's jobs fared; tell whether there is more to say of the folder."""
    from fsr_lab.report.sweep import read_sweep

    if sweep := read_sweep(folder):
        draw_sweep(folder)
        show(sweep.rich())
        # else none of its jobs got so far, or they are of a verb that leaves neither
        return holds_records(folder) or holds_costs(folder)
    return True


def is_artefact(folder: Path) -> bool:
    """Tell whether a folder is an artefact of records; one of costs has a manifest, too."""
    from fsr_lab.report.manifest import MANIFEST

    return (folder / MANIFEST).is_file() and not holds_costs(folder)


def holds_records(folder: Path) -> bool:
    """Tell whether there is a record of an evaluation below a folder."""
    return any(folder.glob("**/records/**/*.json"))


def holds_costs(folder: Path) -> bool:
    """Tell whether there are cost records below a folder and nothing of an evaluation, which would come first."""
    return any(folder.glob("**/costs.json")) and not holds_records(folder)


def show(*tables: "RenderableType") -> None:
    """Print tables as wide as the terminal; a pipe has no width of its own, and a wrapped table is no table."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
    for table in tables:
        console.print(table)

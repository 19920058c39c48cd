"""What a command leaves to look at: pictures drawn, reports written, tables printed."""

import sys
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


def print_report(folder: Path) -> None:
    """Write a folder's report and print its table and where it lies; of a sweep, how its jobs fared before that."""
    from fsr_lab.report.cost import write_cost_report
    from fsr_lab.report.page import write_report
    from fsr_lab.report.sweep import read_sweep

    if sweep := read_sweep(folder):
        draw_sweep(folder)
        show(sweep.rich())
        if not (holds_records(folder) or holds_costs(folder)):
            return  # none of its jobs got so far, or they are of a verb that leaves neither
    table, path = write_cost_report(folder) if holds_costs(folder) else write_report(folder)
    show(table.rich())
    print(f"report: {path}")


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

"""Write the README's results: between its two marks stands what the records in experiments/ say, and nothing by hand.

    python experiments/readme.py

Of each artefact those rows and columns are shown in which something was measured, of the last weights, the paper's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from fsr_lab.core.files import write_text
from fsr_lab.report.artefact import LAST, read_artefact
from fsr_lab.report.columns import DAGGER
from fsr_lab.report.folder_grids import folder_grids
from fsr_lab.report.gather import gather
from fsr_lab.report.grid import Grid, Line, measured_grids
from fsr_lab.report.grid_text import grid_markdown
from fsr_lab.report.manifest import MANIFEST
from fsr_lab.report.verdict import verdict

README, HERE = Path("README.md"), Path("experiments")
BEGIN, END = "<!-- results: python experiments/readme.py -->", "<!-- end of results -->"
COST = "table7"
"""The artefact of counts, which has no accuracies."""
ADAPTIVE = ("Natural", "Ensemble", "AutoAttack", "Adaptive worst case")


def results(root: Path = Path()) -> str:
    """Return the section's text, with links as from a repository's root."""
    parts = [text for folder, grid in _grids(root / HERE) for text in _told(folder, grid, root)]
    if any(DAGGER in part for part in parts):
        parts.append(f"{DAGGER}: a check of this evaluation failed, and the number is not to be believed.\n")
    return "\n".join(parts) if parts else "Nothing is measured yet.\n"


def written(text: str, results: str) -> str:
    """Return a README with other results.

    Raises:
        ValueError: it has no place for them.
    """
    before, begin, rest = text.partition(f"{BEGIN}\n")
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{README} has no place for results; write {BEGIN} and {END} on lines of their own")
    return f"{before}{begin}\n{results}\n{end}{after}"


def _grids(experiments: Path) -> Iterator[tuple[Path, Grid]]:
    """Yield the measured tables of accuracies with the folders that they are of."""
    for manifest in sorted(experiments.glob(f"*/{MANIFEST}")):
        if manifest.parent.name != COST:
            for grid in measured_grids(read_artefact(manifest.parent).grids):
                yield manifest.parent, grid
    adaptive = experiments / "adaptive"
    for grid in folder_grids(gather(adaptive).measured, adaptive):
        yield adaptive, replace(_only(grid, ADAPTIVE), title="Is it really robust? " + grid.title)


def _told(folder: Path, grid: Grid, root: Path) -> Iterator[str]:
    lines = tuple(line for line in grid.lines if line.is_measured and line.checkpoint in (LAST, ""))
    measured = {
        heading for line in lines for heading, cell in zip(grid.headings, line.cells, strict=True) if cell.numbers
    }
    shown = replace(grid, lines=lines, tests=(), untested=())
    yield grid_markdown(_only(shown, [heading for heading in grid.headings if heading in measured]), root)
    yield "".join(f"- {said}\n" for said in _verdicts(lines))
    yield f"[All of it]({folder.relative_to(root).as_posix()}/report.md)\n"


def _verdicts(lines: Sequence[Line]) -> Iterator[str]:
    """Yield what is to be thought of each network that adaptive attacks were run on."""
    for line in lines:
        records = {number.seed: number.record for cell in line.cells for number in cell.numbers if number.record}
        for seed, record in sorted(records.items()):
            judged = verdict(record)
            if judged.kind != "not tested":
                yield f"{line.name}, seed {seed}: {judged.sentence}"


def _only(grid: Grid, headings: tuple[str, ...] | list[str]) -> Grid:
    """Return a grid with some of its columns, and nothing bold: the rule for that is in the report."""
    places = [grid.headings.index(heading) for heading in headings if heading in grid.headings]
    lines = tuple(
        replace(line, cells=tuple(replace(line.cells[place], is_bold=False) for place in places)) for line in grid.lines
    )
    return replace(grid, headings=tuple(grid.headings[place] for place in places), lines=lines)


def main() -> None:
    write_text(README, written(README.read_text(), results()))


if __name__ == "__main__":
    main()

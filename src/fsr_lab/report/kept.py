"""Which runs an artefact has: of what it keeps, of what artefacts beside it keep, or of a folder of runs."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fsr_lab.report.folder_grids import settings_of
from fsr_lab.report.gather import RECORDS, runs_below, seed_of
from fsr_lab.report.manifest import MANIFEST, Manifest


class Kept(NamedTuple):
    """What a run's place says of it: its scale, its experiment, and its directory, which names settings and seed."""

    scale: str
    experiment: str
    job: str


def kept_runs(folder: Path, manifest: Manifest, runs: Path | None) -> tuple[dict[Path, Kept], list[str]]:
    """Return the runs that a manifest names, and a line for each that the artefact keeps although it does not.

    Args:
        folder: of the artefact.
        manifest: its own.
        runs: the folder of runs to look into instead of what is kept.

    Raises:
        ValueError: a manifest that it shares with cannot be read, or there is no such folder of runs.
    """
    if runs is not None and not runs.is_dir():
        raise ValueError(f"no folder {runs}; give runs=FOLDER, where fsr train leaves its runs")
    shared = {folder.parent / name: Manifest.load(folder.parent / name / MANIFEST) for name in manifest.shares}
    found: dict[Path, Kept] = {}
    strange: list[str] = []
    for source, theirs in {folder: manifest, **shared}.items():
        for run, kept in _below(source / RECORDS if runs is None else runs, theirs):
            if kept.scale and kept.experiment in manifest.experiments:
                found[run] = kept
            elif runs is None and source == folder:
                strange.append(f"{run} is of no row of {folder / MANIFEST}; it is left out, move it away")
    return found, strange


def run_titles(manifest: Manifest, runs: dict[Path, Kept]) -> dict[Path, str]:
    """Return what plots call runs: by the row that they fill, their seed, and their scale where there are several."""
    rows = [row for panel in manifest.panels for group in panel.groups for row in group]
    names = {spec.experiment: spec.name for spec in manifest.analyses}
    scales = {kept.scale for kept in runs.values()}
    found = {}
    for run, kept in runs.items():
        own = (row.name for row in rows if (row.experiment, row.settings) == (kept.experiment, settings_of(kept.job)))
        words = [next(own, names.get(kept.experiment, kept.experiment)), f"seed {seed_of(run, 0)}"]
        found[run] = ", ".join([*words, *([f"scale {kept.scale}"] if len(scales) > 1 else [])])
    return found


def _below(root: Path, manifest: Manifest) -> Iterator[tuple[Path, Kept]]:
    """Yield the runs below a folder that is laid out as runs/; of another name than the manifest's, without a scale."""
    for place in sorted(root.iterdir()) if root.is_dir() else []:
        if place.is_dir():
            for run in runs_below(place):
                *experiment, job = run.relative_to(place).parts or ("",)
                yield run, Kept(manifest.scale_of(place.name) or "", "/".join(experiment), job)

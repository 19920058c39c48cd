"""What `fsr report` adds to a folder's report: page.html and table.tex."""

from collections.abc import Sequence
from pathlib import Path

from fsr_lab.core.files import write_text
from fsr_lab.report.analyses import all_shown
from fsr_lab.report.artefact_page import LATEX, PAGE
from fsr_lab.report.cost import CostTable, cost_sections, write_cost_report
from fsr_lab.report.folder_grids import folder_grids
from fsr_lab.report.gallery import kept_pictures, run_galleries
from fsr_lab.report.gather import gather, run_names
from fsr_lab.report.html import Page, rendered
from fsr_lab.report.latex import grids_latex
from fsr_lab.report.manifest import MANIFEST, Manifest
from fsr_lab.report.page import Report, write_report
from fsr_lab.report.plots import against_eps, against_steps, over_settings, training_curves
from fsr_lab.report.sections import record_sections, told_apart
from fsr_lab.report.sweep import read_sweep


def write_folder(folder: Path, places: Sequence[Path] = ()) -> tuple[Report, Path]:
    """Write a folder's report and its page; return what was written and where the page lies.

    Args:
        folder: of a run, a sweep, or anything above them; with places, where to write.
        places: the folders to look into; none is the folder itself.

    Raises:
        ValueError: there is no record that can be read, or the places given have nothing that may be compared.
    """
    if len(places) > 1:
        _refuse_incomparable(places)
    report = write_report(folder, places)
    grids = folder_grids(report.found.measured, folder)
    analyses, undrawn = all_shown(report.found.analysed)
    names = run_names(report.found)
    galleries, unread = run_galleries(names)
    problems = [*report.problems, *undrawn, *unread]
    varied = [plot for grid in grids for plot in over_settings(grid)]
    measured = report.found.measured
    plots = [*varied, *against_eps(measured), *against_steps(measured), *training_curves(names)]
    notes, sweep = folder / "notes.md", read_sweep(folder)
    own = told_apart(folder, [(each.path, each.record) for each in measured])
    sections = [*([("Jobs", sweep.markdown())] if sweep else []), *record_sections(folder, own)]
    page = Page(
        folder=folder, name=folder.resolve().parent.name, title=folder.resolve().name,
        lead=notes.read_text() if notes.is_file() else "", problems=problems, grids=grids, plots=plots,
        analyses=analyses, galleries=galleries,
        pictures=kept_pictures(report.found.runs, folder), sections=sections,
    )  # fmt: skip
    write_text(folder / PAGE, rendered(page))
    write_text(folder / LATEX, grids_latex(grids))
    return report._replace(problems=tuple(problems)), folder / PAGE


def write_cost_page(folder: Path) -> tuple[CostTable, Path, Path]:
    """Write the report, the page and the LaTeX table of the cost records below a folder.

    Returns:
        The table, and where the report and the page lie.
    """
    table, path = write_cost_report(folder)
    manifest = Manifest.load(folder / MANIFEST) if (folder / MANIFEST).is_file() else None
    page = Page(
        folder=folder, name=folder.resolve().name, title=manifest.title if manifest else "Cost", source=table.source,
        make=manifest.make if manifest else "", sections=cost_sections(folder)[1],
    )  # fmt: skip
    write_text(folder / PAGE, rendered(page))
    write_text(folder / LATEX, table.latex())
    return table, path, folder / PAGE


def _refuse_incomparable(places: Sequence[Path]) -> None:
    """Refuse places whose records have no threat or no test images in common: they were named to be compared.

    Raises:
        ValueError: as said, with what differs.
    """
    keys: list[set[tuple[str, object, bytes]]] = []
    networks: list[set[object]] = []
    for place in places:
        records = [each.record for each in gather(place).measured]
        keys.append({(str(one.threat), one.provenance.hashes.get("data"), one.ids.tobytes()) for one in records})
        networks.append({one.provenance.hashes.get("weights") for one in records})
    for place, own, whose in zip(places[1:], keys[1:], networks[1:], strict=True):
        if not keys[0] or not own or keys[0] & own or networks[0] & whose:
            continue  # what holds nothing is told of by the report; one network at several radii is a plot
        threats = [sorted({threat for threat, _, _ in each}) for each in (keys[0], own)]
        what = f"another threat ({threats[0]} and {threats[1]})" if not set(threats[0]) & set(threats[1]) else (
            "other test images"
        )  # fmt: skip
        raise ValueError(f"{places[0]} and {place} are of {what}; evaluate both alike to compare them")

"""What an artefact folder is to hold: a table's rows and columns, and the experiments that fill them."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Self

import yaml

from fsr_lab.core.suggest import unknown

MANIFEST = "manifest.yaml"
SCALES = {
    "paper": "",
    "cpu": "Real images, a narrow network, few epochs: a result of this scale is none of the paper's.",
    "smoke": "Digits, seconds of training: it runs from end to end, and its numbers mean nothing.",
}
"""From the paper's own down to the smallest: what is to be kept in mind of each."""

REFERENCE = " (the paper's)"
"""What the name of a grid's row of the paper's setting ends with."""


@dataclass(frozen=True, kw_only=True)
class RowSpec:
    """One row.

    Attributes:
        name: what the table calls it.
        experiment: option of conf/experiment whose runs fill it; None where none does, and `reason` says why.
        settings: {override: value} of these runs, beyond the experiment's own.
        record: which of a run's records, such as "feature_swap/f_plus"; None is those of its checkpoints.
        nearest: which option of an analysis of nearest neighbours, without its k; None where it is no such row.
        expected: the paper's row in expected.json; None where it has none.
        reason: why nothing fills the row.
    """

    name: str
    experiment: str | None = None
    settings: Mapping[str, str]
    record: str | None = None
    nearest: Mapping[str, Any] | None = None
    expected: str | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class PanelSpec:
    """One table of the artefact.

    Attributes:
        title: over it.
        columns: {our column: the paper's, or None}.
        scales: {scale: threat} at which it is measured.
        groups: rows that are tested against each other.
        reference: of the only group, the row against which each other one is tested; None tests each against each.
        axes: overrides that the rows of a grid vary.
    """

    title: str
    columns: Mapping[str, str | None]
    scales: Mapping[str, str]
    groups: tuple[tuple[RowSpec, ...], ...]
    reference: str | None = None
    axes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class NoteSpec:
    """A footnote to the paper's numbers: of these rows (expected.json's names; all if none) in these columns."""

    text: str
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AnalysisSpec:
    """An analysis that the artefact shows: of which network, and which option of conf/analysis."""

    name: str
    experiment: str
    kind: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """An artefact folder's manifest.yaml.

    Attributes:
        title: of the artefact.
        make: the command that measures it; "" where there is none.
        runs: folders below the folder of runs that it leaves, "{scale}" in their names.
        shares: other artefact folders, beside this one, whose records serve here as well.
        panels: the tables.
        analyses: what is shown beside them.
        notes: to the paper's numbers.
    """

    title: str
    make: str
    runs: tuple[str, ...]
    shares: tuple[str, ...]
    panels: tuple[PanelSpec, ...]
    analyses: tuple[AnalysisSpec, ...]
    notes: tuple[NoteSpec, ...]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a manifest.

        Raises:
            ValueError: it is not there, damaged, or names a scale that does not exist.
        """
        try:
            content = yaml.safe_load(path.read_text())
            return cls(
                title=content["title"], make=content.get("make") or "", runs=tuple(content.get("runs", ())),
                shares=tuple(content.get("shares", ())),
                panels=tuple(_panel(panel, content["scales"]) for panel in content["panels"]),
                analyses=tuple(AnalysisSpec(**each) for each in content.get("analyses", ())),
                notes=tuple(
                    NoteSpec(text=each["text"], rows=tuple(each.get("rows", ())),
                             columns=tuple(each.get("columns", ())))
                    for each in content.get("notes", ())
                ),
            )  # fmt: skip
        except (OSError, AttributeError, KeyError, TypeError, ValueError, yaml.YAMLError) as err:
            cause = str(err).splitlines()[0]
            raise ValueError(
                f"{path} is not a readable manifest ({cause}); experiments/README.md says what is in one"
            ) from err

    @property
    def experiments(self) -> frozenset[str]:
        """All experiments that are named."""
        rows = {row.experiment for panel in self.panels for group in panel.groups for row in group}
        return frozenset(name for name in rows | {each.experiment for each in self.analyses} if name is not None)

    def scale_of(self, folder: str) -> str | None:
        """Return the scale of a folder of runs by its name, or None where it is not this artefact's."""
        return next((scale for scale in SCALES for name in self.runs if name.format(scale=scale) == folder), None)


def _panel(content: Mapping[str, Any], scales: Mapping[str, str]) -> PanelSpec:
    own = content.get("scales", scales)
    for scale in own:
        if scale not in SCALES:
            raise ValueError(unknown("scale", scale, SCALES))
    fixed = {"title": content["title"], "columns": dict(content["columns"]), "scales": dict(own)}
    if "grid" not in content:
        groups = tuple(tuple(_row(row) for row in group) for group in content["groups"])
        return PanelSpec(**fixed, groups=groups, reference=content.get("reference"))
    axes: Mapping[str, list[str]] = content["grid"]
    places = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    names = [setting_name(place) + (REFERENCE if place == content["reference"] else "") for place in places]
    rows = tuple(
        RowSpec(name=name, experiment=content["experiment"], settings=place)
        for name, place in zip(names, places, strict=True)
    )
    reference = setting_name(content["reference"]) + REFERENCE
    return PanelSpec(**fixed, groups=(rows,), reference=reference, axes=tuple(axes))


def _row(content: Mapping[str, Any]) -> RowSpec:
    return RowSpec(**({"settings": {}} | dict(content)))


def setting_name(settings: Mapping[str, str]) -> str:
    """Return what a row of a grid is called: the last words of its overrides and their values."""
    return ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in settings.items())

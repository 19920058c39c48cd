"""A report's plots, drawn from records, curves and analyses: what there is nothing for is not drawn."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fsr_lab.core.attack_kinds import steps_of
from fsr_lab.core.record import CLEAN, NOT_RUN
from fsr_lab.core.units import as_fraction
from fsr_lab.report.columns import columns_of, named, value
from fsr_lab.report.figures import Curves, read_curves
from fsr_lab.report.gather import Measured
from fsr_lab.report.grid import Grid
from fsr_lab.report.interval import wilson
from fsr_lab.report.landscape import draw_points
from fsr_lab.report.svg import inline_svg, themed
from fsr_lab.report.sweep import as_number

WORST_FIRST = ("AutoAttack", "Ensemble", "PGD-100", "PGD-20", "FGSM")
"""Columns by which a network's robustness is plotted: the first that all of its records have."""
SERIES_MOST = 6
"""Lines in one plot; the page has as many colours."""

LABEL = 44
"""Characters of a name in a legend."""

NATURAL, ROBUST = "val/acc", "val/robust_acc"
STEPS = re.compile(r"\bsteps=\d+")

T = TypeVar("T")


class Plot(NamedTuple):
    """One plot.

    Attributes:
        title: over it.
        svg: inline.
        alt: what it shows, in words.
    """

    title: str
    svg: str
    alt: str


def against_eps(measured: Sequence[Measured]) -> list[Plot]:
    """Draw accuracy over the radius, of networks that were attacked at several in one norm, on the same images."""
    found: dict[tuple[object, ...], dict[float, Measured]] = {}
    for each in measured:
        record = each.record
        about = record.provenance.hashes
        key = (about.get("weights", each.path), about.get("data"), record.threat.norm, record.ids.tobytes())
        found.setdefault(key, {}).setdefault(record.threat.eps, each)
    ladders = [ladder for ladder in found.values() if len(ladder) > 1]
    plots = []
    for part in _parts(ladders):
        with themed():
            figure, axis = _figure("perturbation of at most, in pixel levels of 255", "accuracy, %")
            told = []
            for ladder in part:
                headings = [{column.heading for column in columns_of(each.record)} for each in ladder.values()]
                heading = next((name for name in WORST_FIRST if all(name in each for each in headings)), None)
                if heading is None:
                    continue
                name = next(iter(ladder.values())).method
                points = [(0.0, _share(next(iter(ladder.values())), named(CLEAN)))]
                points += [(eps, _share(ladder[eps], heading)) for eps in sorted(ladder)]
                _draw(axis, [255 * eps for eps, _ in points], [share for _, share in points], f"{name}, {heading}")
                values = ", ".join(f"{share[0]:.1f} % at {as_fraction(eps)}" for eps, share in points)
                told.append(f"{name} under {heading}: {values}.")
            if told:
                _add_legend(figure)
                plots.append(_plot("Accuracy against the radius", figure, f"Accuracy over eps. {' '.join(told)}"))
    return plots


def against_steps(measured: Sequence[Measured]) -> list[Plot]:
    """Draw accuracy over the number of steps of attacks that differ in nothing else, the unattacked images at 0.

    Of each network's checkpoints the last alone, which is the paper's.
    """
    ladders = []
    has_radii = len({str(each.record.threat) for each in measured}) > 1
    for each in measured:
        record = each.record
        if each.checkpoint not in ("", "last"):
            continue
        alike: dict[str, dict[int, str]] = {}
        for name in record.attacks:
            if (steps := steps_of(record, name)) and not (record.outcome[record.attacks.index(name)] == NOT_RUN).any():
                alike.setdefault(STEPS.sub("", record.settings[name]), {})[steps] = name
        ladders += [(each, dict(sorted(rungs.items()))) for rungs in alike.values() if len(rungs) > 1]
    plots = []
    for part in _parts(ladders):
        with themed():
            figure, axis = _figure("steps of the attack", "accuracy, %")
            told = []
            for each, rungs in part:
                points = [(steps, _share(each, named(attack))) for steps, attack in ((0, CLEAN), *rungs.items())]
                name = f"{each.method}, seed {each.seed}" + (f", {each.record.threat}" if has_radii else "")
                _draw(axis, [steps for steps, _ in points], [share for _, share in points], name)
                values = ", ".join(f"{share[0]:.1f} % after {steps}" for steps, share in points)
                told.append(f"{name}: {values}.")
            _add_legend(figure)
            plots.append(_plot("Accuracy against steps", figure, f"Accuracy over steps of PGD. {' '.join(told)}"))
    return plots


def training_curves(runs: Mapping[Path, str]) -> list[Plot]:
    """Draw validation accuracy over training steps, the best and the last weights marked.

    Args:
        runs: {directory: what it is called}.
    """
    found = [(name, curves) for run, name in runs.items() if ROBUST in (curves := read_curves(run))]
    plots = []
    for part in _parts(found):
        with themed():
            figure, axis = _figure("training step", "validation accuracy, %")
            told = [_draw_curves(axis, name, curves) for name, curves in part]
            axis.plot([], [], "*", color="gray", markersize=10, label="best")
            axis.plot([], [], "o", color="gray", label="last")
            _add_legend(figure)
            alt = f"Robust (solid) and natural (dashed) validation accuracy over steps. {' '.join(told)}"
            plots.append(_plot("Training: robust (solid) and natural (dashed) accuracy", figure, alt))
    return plots


def over_settings(grid: Grid) -> list[Plot]:
    """Draw, over one or two numbers that a grid varies, its natural accuracy and its worst column."""
    names = [axis.rpartition(".")[2] for axis in grid.axes]
    places = [[as_number(line.settings.get(axis, "")) for axis in grid.axes] for line in grid.lines]
    if len(names) not in (1, 2) or any(number is None for place in places for number in place):
        return []
    plots = []
    for heading in [name for name in ("Natural", *WORST_FIRST) if name in grid.headings]:
        column = grid.headings.index(heading)
        found = {
            tuple(float(number) for number in place if number is not None): [
                number.value.percent for number in line.cells[column].numbers
            ]
            for place, line in zip(places, grid.lines, strict=True)
            if line.checkpoint in ("", "last") and line.cells[column].numbers
        }
        if len(found) < 2:
            continue
        with themed():
            figure = Figure(figsize=(5.2, 4.0), layout="constrained")
            draw_points(figure, names, found)
            values = ", ".join(
                f"{np.mean(each):.1f} % at {' and '.join(f'{number:g}' for number in place)}"
                for place, each in sorted(found.items())
            )
            alt = f"{heading} accuracy over {' and '.join(names)}: {values}."
            plots.append(_plot(f"{heading} over {' and '.join(names)}", figure, alt))
        if len(plots) == 2:
            break
    return plots


def _draw_curves(axis: Axes, name: str, curves: Curves) -> str:
    """Draw one run's, and return what they say."""
    robust = curves[ROBUST]
    steps = sorted(robust)
    shares = [100 * robust[step] for step in steps]
    (line,) = axis.plot(steps, shares, label=name)
    natural = curves.get(NATURAL, {})
    axis.plot(sorted(natural), [100 * natural[step] for step in sorted(natural)], "--", color=line.get_color(), lw=1)
    best = max(steps, key=lambda step: (robust[step], -step))  # the first of several that are as good
    axis.plot([best], [100 * robust[best]], "*", color=line.get_color(), markersize=10)
    axis.plot([steps[-1]], [shares[-1]], "o", color=line.get_color())
    return f"{name}: best {100 * robust[best]:.1f} % at step {best}, last {shares[-1]:.1f} % at {steps[-1]}."


def _share(each: Measured, heading: str) -> tuple[float, float, float]:
    """Return a column's share and its interval's ends, in percent."""
    column = next(column for column in columns_of(each.record) if column.heading == heading)
    found = value(each.record, column)
    assert found is not None, "the column is the record's own"
    low, high = wilson(found.correct, found.n)
    return found.percent, 100 * low, 100 * high


def _draw(axis: Axes, xs: Sequence[float], shares: Sequence[tuple[float, float, float]], label: str) -> None:
    middle = [share for share, _, _ in shares]
    below = [share - low for share, low, _ in shares]
    above = [high - share for share, _, high in shares]
    axis.errorbar(xs, middle, yerr=[below, above], marker="o", capsize=2, elinewidth=0.8, label=label)


def _figure(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.2, 4.0), layout="constrained")
    axis = figure.subplots()
    axis.set(xlabel=xlabel, ylabel=ylabel)
    return figure, axis


def _add_legend(figure: Figure) -> None:
    """Put the legend under the axes, where it hides no line; the page's font may be wider than the one drawn with."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    longest = max(map(len, labels))
    shown = [label if len(label) <= LABEL else f"{label[: LABEL - 1]}…" for label in labels]
    columns = 1 if longest > LABEL // 2 else 2
    figure.legend(handles, shown, loc="outside lower left", ncols=columns, columnspacing=1.2, handlelength=1.6)


def _plot(title: str, figure: Figure, alt: str) -> Plot:
    return Plot(title, inline_svg(figure, alt), alt)


def _parts(found: Sequence[T]) -> list[Sequence[T]]:
    """Return them in parts that one plot can hold."""
    return [found[start : start + SERIES_MOST] for start in range(0, len(found), SERIES_MOST)]


def histogram_plot(names: Mapping[str, Sequence[float]], edges: Sequence[float], whose: str) -> Plot:
    """Draw the shares of a mask's values per bin as steps, a line each."""
    with themed():
        figure, axis = _figure("value of the mask", "share of units, %")
        for name, shares in names.items():
            axis.stairs([100 * share for share in shares], edges, label=name, linewidth=1.4)
        axis.set_yscale("symlog", linthresh=0.1)
        _add_legend(figure)
        ends = ", ".join(
            f"{name}, {100 * shares[0]:.1f} % in the lowest bin and {100 * shares[-1]:.1f} % in the highest"
            for name, shares in names.items()
        )
        return _plot("Histogram of the mask", figure, f"Histogram of the mask of {whose}: {ends}.")


def distance_plot(layers: Sequence[str], series: Mapping[str, Sequence[float]], whose: str) -> Plot:
    """Draw how far an attack moves each layer's features, a line for each kind of image."""
    with themed():
        figure, axis = _figure("layer", "relative change")
        for name, values in series.items():
            axis.plot(range(len(layers)), values, marker="o", label=name)
        axis.set_xticks(range(len(layers)), layers)
        axis.set_ylim(bottom=0)
        _add_legend(figure)
        told = "; ".join(
            f"{name}: " + ", ".join(f"{layer} {value:.2f}" for layer, value in zip(layers, values, strict=True))
            for name, values in series.items()
        )
        return _plot("Feature distance by layer", figure, f"Relative change of features of {whose}. {told}.")

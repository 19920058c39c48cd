"""What a sweep's numbers did: a line where one varied, a heat-map where two did."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rcParams
from matplotlib.figure import Figure

from fsr_lab.report.figures import save_figure
from fsr_lab.report.sweep import PICTURE, axes_of, points, read_sweep, shown_result

TITLES = {
    "test/robust_last": "robust test accuracy of the last weights",
    "test/robust_best": "robust test accuracy of the best weights",
    "val/robust_acc_best": "best robust validation accuracy",
}

Points = Mapping[tuple[float, ...], Sequence[float]]


def draw_sweep(folder: Path) -> Path | None:
    """Draw a sweep's picture and return it; None where no or more than two numbers varied, or nothing is known."""
    sweep = read_sweep(folder)
    result = None if sweep is None else shown_result(sweep)
    if sweep is None or result is None:
        return None
    axes = axes_of(sweep)
    found = points(sweep, axes, result)
    if len(axes) not in (1, 2) or not found:
        return None
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    draw_points(figure, axes, found)
    seeds = max(map(len, found.values()))
    figure.suptitle(f"{TITLES[result]} [%]" + (f", mean of {seeds} seeds" if seeds > 1 else ""), fontsize=10)
    save_figure(figure, folder / PICTURE)
    return folder / PICTURE


def draw_points(figure: Figure, axes: Sequence[str], found: Points) -> None:
    """Draw values in percent at their places: a line over one axis, a map over two."""
    (_draw_line if len(axes) == 1 else _draw_map)(figure, axes, found)


def _draw_line(figure: Figure, axes: Sequence[str], found: Points) -> None:
    """Draw the mean over seeds at every place, evenly spaced whatever the numbers are, and each seed's own point."""
    axis = figure.subplots()
    places = sorted(found)
    axis.plot(range(len(places)), [float(np.mean(found[place])) for place in places], marker="o")
    for index, place in enumerate(places):
        axis.plot([index] * len(found[place]), found[place], ".", color=rcParams["text.color"], markersize=4, alpha=0.5)
    axis.set_xticks(range(len(places)), [f"{place[0]:g}" for place in places])
    axis.set(xlabel=axes[0], ylabel="%")
    axis.grid(alpha=0.3)


def _draw_map(figure: Figure, axes: Sequence[str], found: Points) -> None:
    """Draw a cell for every pair of numbers, with its value in it; a pair without a result stays empty."""
    axis = figure.subplots()
    columns, rows = (sorted({place[index] for place in found}) for index in (0, 1))
    values = np.full((len(rows), len(columns)), np.nan)
    for (x, y), each in found.items():
        values[rows.index(y), columns.index(x)] = np.mean(each)
    places = (range(len(columns)), range(len(rows)))
    # cells, not an image: they stay sharp as a vector graphic
    image = axis.pcolormesh(*places, np.ma.masked_invalid(values), shading="nearest", cmap="viridis")
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            axis.text(column, row, f"{value:.1f}", ha="center", va="center", color="w" if value <= middle else "k")
    axis.set_xticks(range(len(columns)), [f"{number:g}" for number in columns])
    axis.set_yticks(range(len(rows)), [f"{number:g}" for number in rows])
    axis.set(xlabel=axes[0], ylabel=axes[1])
    figure.colorbar(image)

"""Draws the figures of the method's page, from the package's own functions."""

from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from fsr_lab.core.route import tempered
from fsr_lab.defense.masks import logistic_noise, mean_over_noise
from fsr_lab.report.svg import INK, SERIES, inline_svg, themed

TAU = 0.1
"""FSR's default."""
ROBUST, NOT_ROBUST, REPAIRED, LOSS = SERIES[:4]
SIZE = (4.4, 3.1)
"""Of a plot, in inches."""

Place = tuple[float, float]


class Drawn(NamedTuple):
    """A figure, and what it shows, for those who do not see it."""

    figure: Figure
    alt: str


def on_page_content(html: str, *, page: Any, **_: Any) -> str:
    """Return a page's HTML with its figures; mkdocs calls this for every page."""
    if page.file.src_uri != "method.md":
        return html
    for name, draw in FIGURES.items():
        place = f"<!-- figure: {name} -->"
        if html.count(place) != 1:
            raise ValueError(f"docs/method.md needs one line {place}, where the figure goes")
        with themed():
            figure, alt = draw()
        html = html.replace(place, f'<div class="drawn">{inline_svg(figure, alt)}</div>')
    return html


def overview() -> Drawn:
    """Draw the way of a feature map through FSR, from top to bottom."""
    figure = Figure(figsize=(5.2, 6))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 52), ylim=(0, 60))
    axes.axis("off")
    box(axes, (20, 57), 22, "feature map f")
    arrow(axes, INK, (20, 55), (20, 51))
    box(axes, (20, 49), 22, "Separation Net S", net=True)
    arrow(axes, INK, (20, 47), (20, 43))
    label(axes, (21, 45), "score r")
    box(axes, (20, 39.75), 22, "mask m = sigmoid(r / τ)\nin training (r + noise) / τ", height=6.5)
    for colour, side, foot, head, name, at in (
        (ROBUST, (9, 4), 14, 12, "m", 9.5), (NOT_ROBUST, (31, 38), 26, 28, "1 − m", 28.5),
    ):  # fmt: skip
        arrow(axes, INK, (side[0], 57), (side[1], 57), (side[1], 32))
        arrow(axes, colour, (foot, 36.5), (head, 32))
        label(axes, (at, 34.5), name, colour)
    box(axes, (10.5, 30), 15, "f⁺ = m f", colour=ROBUST)
    box(axes, (32.5, 30), 18, "f⁻ = (1 − m) f", colour=NOT_ROBUST)
    arrow(axes, NOT_ROBUST, (32.5, 28), (32.5, 24))
    box(axes, (32.5, 22), 25, "Recalibration Net R", colour=REPAIRED, net=True)
    arrow(axes, REPAIRED, (32.5, 20), (32.5, 16))
    box(axes, (32.5, 14), 25, "f̃⁻ = f⁻ + (1 − m) R(f⁻)", colour=REPAIRED)
    box(axes, (17, 4), 19, "f̃ = f⁺ + f̃⁻")
    arrow(axes, ROBUST, (13, 28), (13, 6))
    arrow(axes, REPAIRED, (26, 12), (22, 6))
    arrow(axes, INK, (26.5, 4), (31, 4))
    label(axes, (31.5, 4), "goes on")
    for way, at, told in (
        (((5, 28), (5, 24)), (1, 21.5), "h → y\nseparation"),
        (((41.5, 30), (44, 30)), (44.4, 30), "h → y'\nseparation"),
        (((42, 12), (42, 8.5)), (38.5, 6), "h → y\nrecalibration"),
    ):  # fmt: skip
        arrow(axes, LOSS, *way)
        label(axes, at, told, LOSS)
    return Drawn(
        figure,
        "The Separation Net scores the feature map f; the score becomes the mask m. m times f is the robust part, one "
        "minus m times f the other, to which the Recalibration Net adds its repair. The sum of both goes on. In "
        "training a shared head h must find the class y in the robust and in the repaired part, and the likeliest "
        "wrong class y' in the part that is not robust.",
    )


def box(
    axes: Axes, centre: Place, width: float, text: str, *, height: float = 4, colour: str = INK, net: bool = False
) -> None:
    """Draw a quantity, or a net, which has round ends."""
    corner = (centre[0] - width / 2, centre[1] - height / 2)
    style = f"round,pad=0,rounding_size={2 if net else 0.4}"
    axes.add_patch(
        FancyBboxPatch(corner, width, height, boxstyle=style, edgecolor=colour, facecolor="none", linewidth=1.4)
    )
    axes.text(*centre, text, ha="center", va="center", color=colour, fontsize=11, linespacing=1.4)


def arrow(axes: Axes, colour: str, *way: Place) -> None:
    """Draw a line through points, with a head at its end."""
    axes.plot(*zip(*way, strict=True), color=colour, linewidth=1.2)
    line = {"arrowstyle": "-|>", "color": colour, "shrinkA": 0, "shrinkB": 0, "linewidth": 1.2}
    axes.annotate("", way[-1], way[-2], arrowprops=line)


def label(axes: Axes, place: Place, text: str, colour: str = INK) -> None:
    """Write beside an arrow."""
    axes.text(*place, text, va="center", color=colour, fontsize=10, linespacing=1.3)


def gate() -> Drawn:
    """Draw the deployed mask over its score, and what training draws in its place."""
    score = torch.linspace(-4, 4, 401)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        some = 8 * torch.rand(250) - 4
        masks = tempered(some + logistic_noise(some), TAU)
    figure, axes = plot("score r", "mask m")
    axes.plot(some, masks, ".", color=SERIES[2], label="a draw of training")
    axes.plot(score, mean_over_noise(score, TAU, samples=1000), "--", color=SERIES[1], label="mean of the draws")
    axes.plot(score, tempered(score, TAU), color=SERIES[0], label="deployed")
    figure.legend(loc="outside upper center", ncols=3, handlelength=1.2, columnspacing=1)
    return Drawn(
        figure,
        "The mask over the score at temperature 0.1. Deployed it is a step from 0 to 1 about as wide as 1; draws of "
        "training lie at 0 or 1 for scores far from 0 too, and their mean rises as slowly as a sigmoid of the score.",
    )


def slope() -> Drawn:
    """Draw how much a mask yields to its score, at the default temperature and at one."""
    figure, axes = plot("score r", "slope dm / dr")
    for tau, style in ((TAU, "-"), (1.0, "--")):
        score = torch.linspace(-4, 4, 401, dtype=torch.float64, requires_grad=True)
        (found,) = torch.autograd.grad(tempered(score, tau).sum(), score)
        axes.semilogy(score.detach(), found, style, label=f"τ = {tau:g}")
    axes.set_ylim(1e-9, 10)
    axes.set_yticks(10.0 ** np.arange(-8, 1, 2))
    figure.legend(loc="outside upper center", ncols=2)
    return Drawn(
        figure,
        "The slope of the mask over the score, logarithmic. At temperature 0.1 it is 2.5 at score 0 and falls by a "
        "factor of ten every 0.23; at temperature 1 it stays above 0.017 from -4 to 4.",
    )


def plot(across: str, up: str) -> tuple[Figure, Axes]:
    """Return an empty plot."""
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot(xlabel=across, ylabel=up)
    return figure, axes


FIGURES = {"overview": overview, "gate": gate, "slope": slope}

"""What a report shows of each kind of analysis: tables, plots, galleries."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fsr_lab.core.analysis import AnalysisRecord
from fsr_lab.report.gallery import PARTS, Gallery, attention_gallery
from fsr_lab.report.gather import Analysed
from fsr_lab.report.interval import wilson
from fsr_lab.report.plots import Plot, distance_plot, histogram_plot


class Shown(NamedTuple):
    """An analysis on a page.

    Attributes:
        title: of the section.
        text: Markdown.
        plots: beside it.
        galleries: under it.
        path: of the analysis; None where a page has no place to link it from.
    """

    title: str
    text: str
    plots: tuple[Plot, ...] = ()
    galleries: tuple[Gallery, ...] = ()
    path: Path | None = None


def all_shown(found: Sequence[Analysed]) -> tuple[list[Shown], list[str]]:
    """Return the sections of analyses, and a line of cause and cure for each that could not be shown."""
    sections: list[Shown] = []
    problems: list[str] = []
    for each in found:
        try:
            sections.append(shown(each.record)._replace(path=each.path))
        except ValueError as err:
            problems.append(f"{each.path}: {err}")
    return sections, problems


def shown(record: AnalysisRecord) -> Shown:
    """Return what a page shows of an analysis; of a kind that is not known here, that it is there.

    Raises:
        ValueError: it lacks what its kind has.
    """
    kind = KINDS.get(record.kind)
    if kind is None:
        return Shown(f"{record.kind}, {record.name}", f"Arrays: {', '.join(sorted(record.arrays)) or 'none'}.\n")
    try:
        return kind(record)
    except (KeyError, IndexError, TypeError, ValueError) as err:
        raise ValueError(f"{record.kind} of {record.name} lacks what a report shows ({err!r}); analyse again") from err


def _attention(record: AnalysisRecord) -> Shown:
    names = record.settings["maps"]
    *_, height, width = record.arrays["maps"].shape
    middle = (height - 2 * (height // 4)) * (width - 2 * (width // 4)) / (height * width)  # as the analysis cuts it
    lines = ["| map | in the middle | correlation with the clean image's |", "|---|--:|--:|"]
    for name, centre, correlation in zip(names, record.arrays["centre"], record.arrays["correlation"], strict=True):
        lines.append(f"| {PARTS.get(name, name)} | {_mean(100 * centre)} % | {_mean(correlation)} |")
    text = "\n".join([
        *lines, "",
        f"Means over {record.arrays['maps'].shape[1]} images ± standard error. The middle is {middle:.0%} of a map: "
        "as much attention lies there by chance. A map is of few positions and easily over-read.\n",
    ])  # fmt: skip
    return Shown(f"Attention maps: {record.name}", text, galleries=(attention_gallery(record),))


def _mask_maps(record: AnalysisRecord) -> Shown:
    histogram: NDArray[np.int64] = record.arrays["histogram"]
    edges = record.settings["edges"]
    middles = (np.array(edges[:-1]) + np.array(edges[1:])) / 2
    lines = ["| class | images | mean clean | mean attacked | near 0 or 1 clean | near 0 or 1 attacked | moved by |",
             "|---|--:|--:|--:|--:|--:|--:|"]  # fmt: skip
    rows = [*((str(place), histogram[:, place], place) for place in range(histogram.shape[1])),
            ("all", histogram.sum(axis=1), None)]  # fmt: skip
    for name, counts, place in rows:
        total = counts.sum(axis=1).clip(1)
        density = (counts * middles).sum(axis=1) / total
        ends = (counts[:, 0] + counts[:, -1]) / total
        images = record.arrays["images"].sum() if place is None else record.arrays["images"][place]
        moved = "" if place is None else f"{record.arrays['changed'][place]:.3f}"
        shares = " | ".join([*(f"{each:.3f}" for each in density), *(f"{100 * each:.1f} %" for each in ends)])
        lines.append(f"| {name} | {images} | {shares} | {moved} |")
    text = "\n".join([*lines, "", "The mask as deployed, without noise; near 0 or 1: within 0.02.\n"])
    both = histogram.sum(axis=1) / histogram.sum(axis=(1, 2)).clip(1)[:, None]
    plot = histogram_plot({"clean": both[0].tolist(), "attacked": both[1].tolist()}, edges, record.name)
    return Shown(f"The mask: {record.name}", text, (plot,))


def _feature_distance(record: AnalysisRecord) -> Shown:
    layers, relative, cosine = record.settings["layers"], record.arrays["relative"], record.arrays["cosine"]
    fooled = record.arrays["fooled"]
    lines = ["| layer | relative change | fooled | not fooled | cosine |", "|---|--:|--:|--:|--:|"]
    for layer, moved, angle in zip(layers, relative, cosine, strict=True):
        cells = [_mean(values) for values in (moved, moved[fooled], moved[~fooled], angle)]
        lines.append(f"| {layer} | {' | '.join(cells)} |")
    text = "\n".join([*lines, "", "‖F(x′) − F(x)‖ / ‖F(x)‖ of each layer's output, mean ± standard error.\n"])
    means = {"all": relative, "fooled": relative[:, fooled], "not fooled": relative[:, ~fooled]}
    series = {name: np.nanmean(values, axis=1).tolist() for name, values in means.items() if values.size}
    return Shown(f"Feature distance: {record.name}", text, (distance_plot(layers, series, record.name),))


def _knn(record: AnalysisRecord) -> Shown:
    labels = record.arrays["labels"]
    lines = ["| part | bank | pooling | k | γ | accuracy |", "|---|---|---|--:|--:|--:|"]
    for option, predicted in zip(record.settings["options"], record.arrays["predicted"], strict=True):
        right = int((predicted == labels).sum())
        low, high = wilson(right, len(labels))
        about = " | ".join(str(option[key]).replace("_", " ") for key in ("bank", "pooling", "k", "gamma"))
        share = f"{100 * right / len(labels):.2f} [{100 * low:.1f}, {100 * high:.1f}]"
        lines.append(f"| {PARTS.get(option['part'], option['part'])} | {about} | {share} |")
    return Shown(f"Nearest neighbours: {record.name}", "\n".join([*lines, "", f"n {len(labels)}.\n"]))


def _feature_swap(record: AnalysisRecord) -> Shown:
    settings = record.settings
    density = f" The random mask keeps {settings['density']:.1%} of the units." if "density" in settings else ""
    text = f"Each part of the features at {settings['point']} goes on alone: rows of the tables.{density}\n"
    return Shown(f"Feature replacement: {record.name}", text)


KINDS: Mapping[str, Callable[[AnalysisRecord], Shown]] = {
    "attention": _attention,
    "feature_distance": _feature_distance,
    "feature_swap": _feature_swap,
    "knn": _knn,
    "mask_maps": _mask_maps,
}
"""What is known, by the option of conf/analysis."""


def _mean(values: NDArray[np.floating]) -> str:
    """Return the mean of what is a number, and its standard error."""
    known = values[~np.isnan(values)]
    if not known.size:
        return ""
    error = f" ± {known.std(ddof=1) / np.sqrt(known.size):.3f}" if known.size > 1 else ""
    return f"{known.mean():.3f}{error}"

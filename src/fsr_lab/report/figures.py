"""The two pictures of a run: its learning curves, and a few images before and after an attack."""

import csv
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fsr_lab.core.files import write_atomically

Curves = dict[str, dict[int, float]]

LOSSES, ACCURACIES = "loss", "accuracy"


def read_curves(run: Path) -> Curves:
    """Return {metric: {step: value}} of every CSV log of a run; where a resumed run logged again, the later counts."""
    curves: Curves = defaultdict(dict)
    for path in sorted(run.glob("metrics/version_*/metrics.csv"), key=lambda path: int(path.parent.name[8:])):
        with path.open(newline="") as stream:
            for row in csv.DictReader(stream):
                for name, text in row.items():
                    if text and name not in ("step", "epoch"):
                        curves[name][int(row["step"])] = float(text)
    return dict(curves)


def draw_curves(curves: Curves, path: Path, *, title: str) -> None:
    """Draw losses beside accuracies over training steps, as a PNG."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, points in sorted(curves.items()):
        steps = sorted(points)
        is_accuracy = name.endswith("acc")
        style = {"marker": "o", "markersize": 3} if is_accuracy else {"linewidth": 1}
        (right if is_accuracy else left).plot(steps, [points[step] for step in steps], label=name, **style)
    for axis, label in ((left, "loss term"), (right, "accuracy")):
        axis.set(xlabel="step", ylabel=label)
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=8)
    right.set_ylim(0, 1)
    figure.suptitle(title)
    save_figure(figure, path)


def draw_samples(samples: Mapping[str, NDArray[Any]], path: Path, *, title: str) -> None:
    """Draw clean images, adversarial images and their magnified difference, with predictions, as a PNG.

    Args:
        samples: `clean` and `adversarial` (n, C, H, W) in [0, 1], `labels`, `predicted_clean` and
            `predicted_adversarial` (n,).
        path: the PNG.
        title: above the picture.
    """
    clean, adversarial = samples["clean"], samples["adversarial"]
    difference = adversarial - clean
    scale = max(float(np.abs(difference).max()), 1e-12)
    rows: Sequence[tuple[str, NDArray[Any], NDArray[Any] | None]] = (
        ("clean", clean, samples["predicted_clean"]),
        ("adversarial", adversarial, samples["predicted_adversarial"]),
        (f"difference\n±{scale:.3g}", difference / (2 * scale) + 0.5, None),
    )
    figure = Figure(figsize=(1.25 * len(clean) + 1, 4.6), layout="constrained")
    axes = figure.subplots(3, len(clean), squeeze=False)
    for line, (name, images, predicted) in zip(axes, rows, strict=True):
        line[0].set_ylabel(name, fontsize=9)
        for index, axis in enumerate(line):
            image = images[index].transpose(1, 2, 0).clip(0, 1)
            axis.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            if predicted is not None:
                right = predicted[index] == samples["labels"][index]
                axis.set_title(f"{predicted[index]}", fontsize=9, color="#1a7f37" if right else "#cf222e")
    figure.suptitle(f"{title}: predicted class, green where right", fontsize=10)
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Save a figure as a PNG, whole or not at all."""
    # without metadata, equal inputs give equal bytes
    with matplotlib.rc_context({"svg.hashsalt": "fsr-lab"}):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    write_atomically(path, lambda stream: stream.write(buffer.getvalue()))

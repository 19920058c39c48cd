"""What a tracker is shown beside numbers, and how W&B and TensorBoard take it; other loggers are not shown it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from numpy.typing import NDArray


class Histogram(NamedTuple):
    """How often values fell between edges.

    Attributes:
        counts: (B,).
        edges: (B + 1,), ascending.
    """

    counts: NDArray[np.int64]
    edges: NDArray[np.float64]


class Images(NamedTuple):
    """Pictures, each with a line under it.

    Attributes:
        pixels: (N, C, H, W) in [0, 1].
        captions: N of them.
    """

    pixels: NDArray[np.float32]
    captions: Sequence[str]


class Rows(NamedTuple):
    """A table.

    Attributes:
        columns: their names.
        rows: each with a value for every column.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str | int | float]]


class Files(NamedTuple):
    """Files that belong together, for a tracker that keeps such.

    Attributes:
        kind: what they are.
        paths: where they lie.
    """

    kind: str
    paths: Sequence[Path]


Exhibit = Histogram | Images | Rows | Files


def shown(name: str, exhibit: Exhibit, step: int | None = None) -> Callable[[Logger], None]:
    """Return what shows an exhibit to a logger: a word for a `Tracker`.

    Args:
        name: under which the tracker files it.
        exhibit: not changed by the caller afterwards.
        step: the optimiser step that it belongs to; None is after the training.
    """

    def show(logger: Logger) -> None:
        if isinstance(logger, WandbLogger):
            _in_wandb(logger, name, exhibit, step)
        elif isinstance(logger, TensorBoardLogger):
            _in_tensorboard(logger.experiment, name, exhibit, step)

    return show


def _in_wandb(logger: WandbLogger, name: str, exhibit: Exhibit, step: int | None) -> None:
    import wandb

    entry: Any
    match exhibit:
        case Files(kind, paths):
            artifact = wandb.Artifact(f"{name}-{logger.experiment.id}", type=kind)
            for path in paths:
                artifact.add_file(str(path))
            logger.experiment.log_artifact(artifact)
            return
        case Histogram(counts, edges):
            entry = wandb.Histogram(np_histogram=(counts.tolist(), edges.tolist()))
        case Images(pixels, captions):
            levels = _levels(pixels).transpose(0, 2, 3, 1)
            squeezed = [image[..., 0] if image.shape[-1] == 1 else image for image in levels]
            entry = [wandb.Image(image, caption=text) for image, text in zip(squeezed, captions, strict=True)]
        case Rows(columns, rows):
            entry = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
    logger.log_metrics({name: entry}, step)


def _in_tensorboard(writer: Any, name: str, exhibit: Exhibit, step: int | None) -> None:
    match exhibit:
        case Histogram(counts, edges):
            middles = (edges[:-1] + edges[1:]) / 2
            writer.add_histogram_raw(
                name, min=edges[0], max=edges[-1], num=counts.sum(), sum=(counts * middles).sum(),
                sum_squares=(counts * middles**2).sum(), bucket_limits=edges[1:].tolist(),
                bucket_counts=counts.tolist(), global_step=step,
            )  # fmt: skip
        case Images(pixels, captions):
            writer.add_images(name, _levels(pixels), global_step=step)
            writer.add_text(f"{name}/captions", "  \n".join(captions), global_step=step)
        case Rows(columns, rows):
            lines = [columns, ["---"] * len(columns), *rows]
            writer.add_text(name, "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines), global_step=step)


def _levels(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return images in 256 levels: both trackers would otherwise guess the range from the values."""
    return (pixels * 255).round().clip(0, 255).astype(np.uint8)

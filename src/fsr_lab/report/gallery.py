"""Images on a page: clean and attacked ones, what lies between, where a network looks."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fsr_lab.core.analysis import AnalysisRecord
from fsr_lab.core.record import DAMAGES
from fsr_lab.report.gather import METRICS, SAMPLES

MOST = 8
"""Images in a gallery, from the first; nothing is chosen."""
GALLERIES = 4
"""Runs whose images a page shows, from the first."""


class Picture(NamedTuple):
    """One image.

    Attributes:
        uri: the PNG, as data.
        alt: what it shows.
        caption: under it.
        is_right: whether the network was right about it; None where it was not asked.
    """

    uri: str
    alt: str
    caption: str = ""
    is_right: bool | None = None


class Gallery(NamedTuple):
    """Rows of images under a title."""

    title: str
    rows: tuple[tuple[str, tuple[Picture, ...]], ...]
    note: str = ""


def run_galleries(runs: Mapping[Path, str]) -> tuple[list[Gallery], list[str]]:
    """Return the images of the first runs that kept some, and a line for each file that could not be read.

    Args:
        runs: {directory: what it is called}.
    """
    galleries: list[Gallery] = []
    problems: list[str] = []
    for run in [run for run in runs if (run / SAMPLES).is_file()][:GALLERIES]:
        try:
            galleries.append(sample_gallery(read_samples(run / SAMPLES), runs[run]))
        except ValueError as err:
            problems.append(str(err))
    return galleries, problems


def kept_pictures(runs: Sequence[Path], folder: Path) -> list[Picture]:
    """Return the pictures of runs that did not keep what these were drawn from.

    Args:
        runs: directories.
        folder: that the page is about.
    """
    found = []
    for run in runs:
        name = run.relative_to(folder).as_posix() if run.is_relative_to(folder) else run.name
        for picture, source, alt in (
            ("curves.png", METRICS, "losses and accuracies over training steps"),
            ("samples.png", SAMPLES, "images before and after an attack, with predictions"),
        ):
            if (run / picture).is_file() and not (run / source).exists():
                uri = f"data:image/png;base64,{base64.b64encode((run / picture).read_bytes()).decode()}"
                found.append(Picture(uri, f"{name}: {alt}", f"{name}: {alt}"))
    return found


def read_samples(path: Path) -> dict[str, NDArray[Any]]:
    """Read the images that a run kept.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            samples = dict(stored)
        for name in ("clean", "adversarial", "labels", "attack", "predicted_clean", "predicted_adversarial"):
            samples[name]
        return samples
    except DAMAGES as err:
        raise ValueError(f"{path} holds no images that can be read ({err}); train again, or remove it") from err


def sample_gallery(samples: Mapping[str, NDArray[Any]], title: str) -> Gallery:
    """Return clean images, attacked ones, and the difference, enlarged until its largest value is full contrast.

    Args:
        samples: as `read_samples` returns them; images (n, C, H, W) in [0, 1].
        title: of the gallery.
    """
    clean, attacked, labels = (samples[name][:MOST] for name in ("clean", "adversarial", "labels"))
    difference = attacked - clean
    scale = max(float(np.abs(difference).max()), 1e-12)
    attack = str(samples["attack"])
    rows = []
    for name, images, predicted in (
        ("clean", clean, samples["predicted_clean"]), (attack, attacked, samples["predicted_adversarial"]),
    ):  # fmt: skip
        pictures = [
            Picture(_png(image), f"image {place}, {name}: {label}, predicted {guess}", str(guess), bool(guess == label))
            for place, (image, label, guess) in enumerate(zip(images, labels, predicted, strict=False))
        ]
        rows.append((name, tuple(pictures)))
    changes = [
        Picture(_png(image / (2 * scale) + 0.5), f"image {place}: what {attack} added, enlarged", "")
        for place, image in enumerate(difference)
    ]
    rows.append((f"difference × {0.5 / scale:.3g}", tuple(changes)))
    return Gallery(title, tuple(rows), "Under each image the predicted class.")


def attention_gallery(record: AnalysisRecord) -> Gallery:
    """Return the first images of an attention analysis with each of its maps laid over them."""
    arrays, names = record.arrays, record.settings["maps"]
    clean, attacked = (arrays[name][:MOST].astype(np.float64) / 255 for name in ("clean", "adversarial"))
    labels = arrays["labels"][:MOST]
    rows = [
        (name, tuple(
            Picture(_png(image), f"image {place}, {name}: class {label}") for place, (image, label)
            in enumerate(zip(images, labels, strict=True))
        ))
        for name, images in (("clean", clean), ("attacked", attacked))
    ]  # fmt: skip
    for name, maps in zip(names, arrays["maps"], strict=True):
        under = clean if name in ("clean image", "natural") else attacked
        rows.append((f"attention: {PARTS.get(name, name)}", tuple(
            Picture(_png(_overlaid(image, heat)), f"image {place}: attention of {PARTS.get(name, name)}")
            for place, (image, heat) in enumerate(zip(under, maps[:MOST], strict=True))
        )))  # fmt: skip
    height, width = arrays["maps"].shape[-2:]
    note = f"Grad-CAM maps of {height}×{width}, enlarged: bright is where the class is read from."
    return Gallery(f"Attention of {record.name}", tuple(rows), note)


PARTS = {"f_plus": "f⁺", "f_minus": "f⁻", "f_tilde_minus": "f̃⁻", "f_tilde": "f̃", "f": "f", "natural": "natural network"}
"""How a page calls the parts of the features."""


def _overlaid(image: NDArray[np.float64], heat: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return (3, H, W): an image in grey under a map, bilinearly enlarged."""
    grey = image.mean(axis=0)
    size = (grey.shape[1], grey.shape[0])
    large = np.asarray(Image.fromarray(heat.astype(np.float32), mode="F").resize(size, Image.Resampling.BILINEAR))
    colours = matplotlib.colormaps["inferno"](large.clip(0, 1))[..., :3]
    mixed: NDArray[np.float64] = (0.4 * grey[..., None] + 0.6 * colours).transpose(2, 0, 1)
    return mixed


def _png(image: NDArray[Any]) -> str:
    """Return (C, H, W) in [0, 1], grey or in colour, as a data URI."""
    pixels = (image.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"

"""What a dataset is before it is prepared: four numpy arrays that hold what they promise."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Arrays(NamedTuple):
    """Images and labels as a source gives them; after `checked`, (N, C, H, W) uint8 and int64.

    Attributes:
        x_train, x_test: (N, C, H, W) or (N, H, W, C) images, uint8 or floats in [0, 1].
        y_train, y_test: (N,) integer labels in [0, K).
        source: where they come from, for the manifest.
    """

    x_train: Array
    y_train: Array
    x_test: Array
    y_test: Array
    source: str


def checked(arrays: Arrays, *, name: str, image_shape: tuple[int, int, int], num_classes: int) -> Arrays:
    """Return the arrays as (N, C, H, W) uint8 and int64, or say what is wrong with them.

    Floats are rounded to 256 levels.

    Args:
        arrays: images and labels as found.
        name: the dataset, for messages.
        image_shape: the (C, H, W) every image must have.
        num_classes: K; labels are 0 to K - 1 and training shows every one of them.

    Raises:
        ValueError: a shape, a kind of number, a range or a label that is not as it should be.
    """
    x_train = _images(arrays.x_train, f"{name}: x_train", image_shape)
    x_test = _images(arrays.x_test, f"{name}: x_test", image_shape)
    y_train = _labels(arrays.y_train, f"{name}: y_train", len(x_train), num_classes)
    y_test = _labels(arrays.y_test, f"{name}: y_test", len(x_test), num_classes)
    missing = np.setdiff1d(np.arange(num_classes), y_train)
    if missing.size:
        raise ValueError(
            f"{name}: expected training images of all {num_classes} classes, got none of {_few(missing)}; "
            f"set dataset.num_classes to what the data hold, or renumber the labels from 0 without gaps"
        )
    return Arrays(x_train, y_train, x_test, y_test, arrays.source)


def counted(arrays: Arrays, *, name: str, train: Sequence[int], test: Sequence[int]) -> Arrays:
    """Return the arrays if they hold as many images of each class as the official set.

    Args:
        arrays: images and labels as found.
        name: the dataset, for messages.
        train: how many images of each class the training part must have.
        test: the same of the test part.

    Raises:
        ValueError: a part has more or fewer of some class.
    """
    for part, y, expected in (("training", arrays.y_train, train), ("test", arrays.y_test, test)):
        values, counts = np.unique(y, return_counts=True)
        found = dict(zip(values.tolist(), counts.tolist(), strict=True))
        for label, count in enumerate(expected):
            if found.get(label, 0) != count:
                raise ValueError(
                    f"{name}: expected the official set's {count} {part} images of class {label}, "
                    f"got {found.get(label, 0)}; fetch it again, or set dataset.verify=false if it is meant to differ"
                )
    return arrays


def _images(x: Array, where: str, shape: tuple[int, int, int]) -> Array:
    channels, height, width = shape
    if x.ndim == 4 and x.shape[1:] == (height, width, channels) and x.shape[1:] != shape:
        x = x.transpose(0, 3, 1, 2)
    if x.ndim != 4 or x.shape[1:] != shape or len(x) == 0:
        raise ValueError(
            f"{where}: expected images (N, {channels}, {height}, {width}) or "
            f"(N, {height}, {width}, {channels}), got {x.shape}; correct dataset.image_shape or the source"
        )
    if np.issubdtype(x.dtype, np.floating):
        x = _levels(x, where)
    if x.dtype != np.uint8:
        raise ValueError(f"{where}: expected uint8 or floats in [0, 1], got {x.dtype}; convert them first")
    return np.ascontiguousarray(x)


def _levels(x: Array, where: str) -> Array:
    if np.isnan(x).any():
        raise ValueError(f"{where}: expected numbers, got NaN in image {np.argwhere(np.isnan(x))[0, 0]}; remove it")
    if x.min() < 0 or x.max() > 1:
        raise ValueError(
            f"{where}: expected floats in [0, 1], got [{x.min():g}, {x.max():g}]; "
            f"scale them, without normalisation: that is the model's first layer"
        )
    return (x * 255).round().astype(np.uint8)


def _labels(y: Array, where: str, count: int, num_classes: int) -> Array:
    if y.shape != (count,):
        raise ValueError(f"{where}: expected a label for each of {count} images, got {y.shape}; mend the source")
    if not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"{where}: expected integer labels, got {y.dtype}; convert them first")
    wrong = np.flatnonzero((y < 0) | (y >= num_classes))
    if wrong.size:
        raise ValueError(
            f"{where}: expected labels in [0, {num_classes}), got {y[wrong[0]]} for image {wrong[0]}; "
            f"correct it or set dataset.num_classes"
        )
    return y.astype(np.int64)


def _few(values: Array) -> str:
    return ", ".join(map(str, values[:5])) + (f" and {len(values) - 5} more" if len(values) > 5 else "")

"""A user's own pictures: a folder for each class."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image

from fsr_lab.core.suggest import unknown
from fsr_lab.dataset.arrays import Array, Arrays
from fsr_lab.dataset.base import ImageDataModule
from fsr_lab.dataset.npz import read_npz
from fsr_lab.dataset.pictures import decode
from fsr_lab.dataset.progress import progress
from fsr_lab.dataset.split import stratified

_NEEDED = "dataset.source=FOLDER with a folder of pictures for each class, or with train/ and test/ of such, or an .npz"


@dataclass(kw_only=True, eq=False)
class ImageFolder(ImageDataModule):
    """Pictures of any format that Pillow reads; classes are numbered in the order of their folders' sorted names.

    `source` holds `train` and `test` (or `val`) with a folder for each class, or such folders alone, of which a part
    is then set aside for testing; an .npz with x_train, y_train, x_test, y_test will do as well. Files of other
    kinds and hidden ones are passed over.

    Args:
        side: height and width of the images.
        resize: whether pictures of another size are brought to it, cut off evenly where they are not square; else
            they are refused.
        test_fraction: the part of each class that is set aside for testing where there is no test folder.
        test_seed: what that choice follows.
    """

    needs_source: ClassVar[bool] = True

    side: int
    resize: bool
    test_fraction: float
    test_seed: int

    def build_arrays(self) -> Arrays:
        """Decode every picture.

        Raises:
            ValueError: `source` is not given, or holds what cannot be used.
        """
        if self.source is None:
            raise ValueError(f"{self.name} has no source of its own; give {_NEEDED}")
        if self.source.suffix == ".npz":
            return read_npz(self.source)
        if not self.source.is_dir():
            raise FileNotFoundError(f"{self.source} is not a folder; give {_NEEDED}")
        train = self.source / "train"
        if not train.is_dir():
            return self._cut(*self._decoded(self.source, _classes(self.source)))
        tests = [self.source / name for name in ("test", "val") if (self.source / name).is_dir()]
        if not tests:
            raise FileNotFoundError(f"{self.source} has a train and neither a test nor a val folder; give {_NEEDED}")
        classes = _classes(train)
        return Arrays(
            *self._decoded(train, classes), *self._decoded(tests[0], classes), source=str(self.source.absolute())
        )

    def _decoded(self, folder: Path, classes: Sequence[str]) -> tuple[Array, Array]:
        if len(classes) != self.num_classes:
            raise ValueError(
                f"{folder}: expected {self.num_classes} folders of classes, got {len(classes)}; "
                f"set dataset.num_classes={len(classes)} if that is all"
            )
        if strange := [name for name in _classes(folder) if name not in classes]:
            raise ValueError(f"{folder}: {unknown('training class', strange[0], classes)}")
        files = [(path, label) for label, name in enumerate(classes) for path in _pictures(folder / name)]
        cure = "set dataset.side to the size of all pictures, or dataset.resize=true to bring them to one"
        x: Array = np.empty((len(files), *self.image_shape), np.uint8)
        with progress(f"decoding {folder.name}", len(files)) as show:
            for place, (path, _) in enumerate(files):
                x[place] = decode(path, str(path), self.image_shape, resize=self.resize, cure=cure)
                show(1)
        return x, np.array([label for _, label in files], dtype=np.int64)

    def _cut(self, x: Array, y: Array) -> Arrays:
        if not 0 < self.test_fraction < 1:
            raise ValueError(f"expected test_fraction between 0 and 1, got {self.test_fraction}")
        labels = torch.from_numpy(y)
        is_test = torch.zeros(len(y), dtype=torch.bool)
        count = max(self.num_classes, round(self.test_fraction * len(y)))
        try:
            is_test[stratified(labels, count, self.num_classes, seed=self.test_seed)] = True
        except ValueError as err:
            raise ValueError(
                f"{self.source}: expected at least two pictures of each class to set {count} of {len(y)} aside for "
                f"testing; add some, or change dataset.test_fraction"
            ) from err
        test = is_test.numpy()
        return Arrays(x[~test], y[~test], x[test], y[test], source=str(self.source))


def _classes(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _pictures(folder: Path) -> list[Path]:
    """Return the pictures anywhere below a class's folder; a class of none is refused."""
    known = Image.registered_extensions()
    found = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in known and path.name[0] != "."]
    if not found:
        raise ValueError(f"{folder}: expected pictures of this class, got none; add some or remove the folder")
    return found

"""scikit-learn's bundled handwritten digits, enlarged: real images that need no download."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from fsr_lab.dataset.arrays import Arrays
from fsr_lab.dataset.base import ImageDataModule
from fsr_lab.dataset.split import stratified

_TEST_SIZE, _TEST_SEED = 360, 0  # a property of the dataset, so that every run is tested on the same images


@dataclass(kw_only=True, eq=False)
class Digits(ImageDataModule):
    """1,797 digits, 8x8 pixels, 16 grey levels (UCI optical recognition of handwritten digits, test part).

    Deviation: the source has no test part; 360 images, stratified and always the same, serve as one.

    Args:
        side: height and width after bilinear enlargement.
    """

    side: int

    def build_arrays(self) -> Arrays:
        """Enlarge the images and cut off the test part."""
        digits = load_digits()
        grey = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
        side = (self.side, self.side)
        x = (F.interpolate(grey, size=side, mode="bilinear", align_corners=False) * 255).round().byte()
        y = torch.from_numpy(digits.target).long()
        is_test = torch.zeros(len(y), dtype=torch.bool)
        is_test[stratified(y, _TEST_SIZE, 10, seed=_TEST_SEED)] = True
        return Arrays(
            x[~is_test].numpy(),
            y[~is_test].numpy(),
            x[is_test].numpy(),
            y[is_test].numpy(),
            source="sklearn.datasets.load_digits",
        )

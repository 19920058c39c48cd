"""A small random image set that a few training steps learn: for tests."""

from dataclasses import dataclass

import numpy as np

from fsr_lab.dataset.arrays import Array, Arrays
from fsr_lab.dataset.base import ImageDataModule


@dataclass(kw_only=True, eq=False)
class Toy(ImageDataModule):
    """One random pattern of dark and light pixels for each class, under noise.

    Args:
        train_size: images of the training part, validation images included.
        test_size: images of the test part.
        contrast: distance of a pattern's pixels from grey, in [0, 0.5].
        noise: standard deviation of the pixel noise, pixel scale.
        pattern_seed: what patterns and noise follow.
    """

    train_size: int
    test_size: int
    contrast: float
    noise: float
    pattern_seed: int

    def build_arrays(self) -> Arrays:
        """Draw patterns, then noise."""
        rng = np.random.default_rng(self.pattern_seed)
        patterns = 0.5 + self.contrast * rng.choice([-1.0, 1.0], size=(self.num_classes, *self.image_shape))

        def draw(count: int) -> tuple[Array, Array]:
            y = np.arange(count) % self.num_classes
            return (patterns[y] + self.noise * rng.standard_normal((count, *self.image_shape))).clip(0, 1), y

        return Arrays(*draw(self.train_size), *draw(self.test_size), f"random, seed {self.pattern_seed}")

"""Friendly adversarial training."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from torch import Tensor

from fsr_lab.core.types import Attack, Crafted, Defended, Progress
from fsr_lab.core.units import nonnegative, whole
from fsr_lab.strategy.base import Strategy, aimed_at


class FAT(Strategy):
    """Any strategy on friendly examples: wrong, but no more than they must be (Zhang et al., 2020, arXiv:2002.11242).

    A sample stops moving `patience` steps after it is misclassified, each on its own; the patience grows with the
    epochs. The losses are the base's. Samples stay in their places, where the released code reorders them.

    Args:
        base: the strategy whose crafting is replaced; its attack is stopped early.
        patience: steps, one number per stage of training; the paper's tau.
        until: the last epoch, counted from 1, of each stage but the last.
        jitter: standard deviation of the noise added in each step; the paper's omega.

    Raises:
        ValueError: stages that do not fit, or a base that crafts in a way of its own.
    """

    def __init__(
        self,
        *,
        base: Strategy,
        patience: Sequence[int] = (0, 1, 2),
        until: Sequence[int] = (50, 90),
        jitter: float = 0.001,
    ) -> None:
        if len(patience) != len(until) + 1 or list(until) != sorted(until):
            raise ValueError(
                "expected FAT patience for every stage, and in until the last epochs of all stages but "
                f"one in rising order; got patience {list(patience)} and until {list(until)}"
            )
        self.replace_crafting(base)
        self.patience = tuple(whole("FAT patience", steps) for steps in patience)
        self.until = tuple(whole("FAT until", epoch, 1) for epoch in until)
        self.jitter = nonnegative("FAT jitter", jitter)

    def craft(self, model: Defended, x: Tensor, y: Tensor, progress: Progress) -> Crafted:
        """Stop each sample's crafting early, by the patience of this epoch."""
        stage = sum(progress.epoch + 1 > last for last in self.until)
        attack: Attack = replace(cast(Any, self.attack), patience=self.patience[stage], jitter=self.jitter)
        return Crafted(x, aimed_at(attack, model)(model, x, y), y)

"""Curriculum adversarial training."""

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from fsr_lab.core.types import Attack, Crafted, Defended, Progress
from fsr_lab.core.units import whole
from fsr_lab.strategy.base import Strategy, aimed_at


class CAT(Strategy):
    """Any strategy under attacks of growing strength (Cai et al., 2018, arXiv:1805.04807).

    Strength k is a number of PGD steps, of size 2 eps / k * U(1, 10 / k), drawn once a call. A batch is mixed: cut
    into k + 1 equal parts (the last takes the remainder), of which part j is attacked with j steps and part 0 stays
    clean, against forgetting; a batch too small to cut is attacked with k. The losses are the base's; the defences'
    own terms see the attacked parts alone.

    k rises by one in equal stretches of the epochs, 0 at first and `max_strength` at last; or it is what `strength`
    says, which callback=curriculum raises by the paper's rules.

    Deviations: crafting is in eval mode, where the released code's mixing crafts in training mode; the released
    maximum is 7 (10 for SVHN), this protocol's is the 10 steps of its PGD.

    Args:
        base: the strategy whose crafting is replaced.
        max_strength: the last k.
        strength: the present k; None follows the epochs.
        mix: cut the batch; else all of it is attacked with k steps.
        defend_clean: the defences' own terms see the clean part, too.

    Raises:
        ValueError: a strength outside [0, max_strength], or a base that crafts in a way of its own.
    """

    def __init__(
        self,
        *,
        base: Strategy,
        max_strength: int = 10,
        strength: int | None = None,
        mix: bool = True,
        defend_clean: bool = False,
    ) -> None:
        if whole("CAT strength", strength or 0) > whole("CAT max_strength", max_strength, 1):
            raise ValueError(f"expected CAT strength in [0, max_strength], got {strength} of {max_strength}")
        self.replace_crafting(base)
        self.defend_clean = defend_clean
        self.max_strength = max_strength
        self.strength = strength
        self.mix = mix

    def craft(self, model: Defended, x: Tensor, y: Tensor, progress: Progress) -> Crafted:
        """Attack each part of the batch with its own number of steps."""
        strength = self.strength_at(progress)
        size = len(x) // (strength + 1) if self.mix else 0
        if not strength:
            return Crafted(x, x, y, None if self.defend_clean else torch.arange(0, device=x.device))
        parts = [x[:size]]
        for steps in range(1, strength + 1) if size else [strength]:
            rows = slice(steps * size, (steps + 1) * size if steps < strength else None)
            attack = self.attack_of(steps, _relative_step(steps))
            parts.append(aimed_at(attack, model)(model, x[rows], y[rows]))
        attacked = None if self.defend_clean else torch.arange(size, len(x), device=x.device)
        return Crafted(x, torch.cat(parts), y, attacked)

    def attack_of(self, steps: int, relative_step: float) -> Attack:
        """Return the base's attack at a number of steps and their size, as a fraction of eps."""
        attack: Attack = replace(cast(Any, self.attack), steps=steps, relative_step=relative_step)
        return attack

    def strength_at(self, progress: Progress) -> int:
        """Return the number of steps at this point of training."""
        if self.strength is not None:
            return self.strength
        return min(self.max_strength, progress.epoch * (self.max_strength + 1) // max(progress.max_epochs, 1))


def _relative_step(steps: int) -> float:
    """Draw a k-step attack's step as a fraction of eps: 2 / k * U(1, 10 / k), on the host, so that no device waits."""
    low, high = sorted((1.0, 10 / steps))
    return 2 / steps * float(torch.empty(()).uniform_(low, high))

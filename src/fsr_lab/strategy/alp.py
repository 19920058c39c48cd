"""Adversarial logit pairing."""

from typing import Literal, get_args

from torch import Tensor

from fsr_lab.core.losses import cross_entropy
from fsr_lab.core.precision import full_precision
from fsr_lab.core.suggest import unknown
from fsr_lab.core.types import Attack
from fsr_lab.core.units import nonnegative
from fsr_lab.strategy.base import Strategy

Form = Literal["mixed", "adversarial"]
Paired = Literal["logits", "probs"]


class ALP(Strategy):
    """Pairs the logits of each image and its adversarial twin (Kannan et al., 2018, arXiv:1803.06373).

    "mixed", the published form: cross-entropy over both halves of one batch of 2N, plus weight * mean((z - z')^2) over
    all N * K entries; weight 0.5. "adversarial", as MART's comparison has it: cross-entropy on adversarial images
    alone, plus weight * mean_i ||z_i - z'_i||^2; there the usual weight is 1.

    Args:
        attack: crafts the training examples.
        weight: of the pairing; None is the form's published one.
        form: see above.
        paired: what is paired.
        concat: one forward, and one BatchNorm batch, for clean and adversarial images.
        share_noise: the defences draw the same noise for clean and adversarial images, where these are two forwards.

    Raises:
        ValueError: a negative weight or an unknown option.
    """

    needs_clean = True

    def __init__(
        self,
        *,
        attack: Attack,
        weight: float | None = None,
        form: Form = "mixed",
        paired: Paired = "logits",
        concat: bool = True,
        share_noise: bool = False,
    ) -> None:
        super().__init__(attack=attack, concat=concat, share_noise=share_noise)
        for name, value, known in (("form", form, get_args(Form)), ("paired", paired, get_args(Paired))):
            if value not in known:
                raise ValueError(unknown(f"ALP {name}", value, known))
        published = 0.5 if form == "mixed" else 1.0
        self.weight = published if weight is None else nonnegative("weight", weight)
        self.form = form
        self.paired = paired

    def criterion(self, adv: Tensor, clean: Tensor | None, y: Tensor) -> dict[str, Tensor]:
        """Return {"ce", "pairing"}."""
        assert clean is not None
        left, right = full_precision(clean), full_precision(adv)
        if self.paired == "probs":
            left, right = left.softmax(1), right.softmax(1)
        squared = (left - right).square()
        if self.form == "mixed":
            ce = (cross_entropy(adv, y).mean() + cross_entropy(clean, y).mean()) / 2
            return {"ce": ce, "pairing": self.weight * squared.mean()}
        return {"ce": cross_entropy(adv, y).mean(), "pairing": self.weight * squared.sum(1).mean()}

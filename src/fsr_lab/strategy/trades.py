"""TRADES."""

from torch import Tensor

from fsr_lab.core.losses import cross_entropy, kl
from fsr_lab.core.types import Attack
from fsr_lab.core.units import nonnegative
from fsr_lab.strategy.base import Strategy


class TRADES(Strategy):
    """Cross-entropy on clean images plus a KL pull on adversarial ones (Zhang et al., 2019, arXiv:1901.08573, Eq. 5).

    ce(z(x), y) + beta * KL(p(x) || p(x')), both batch means; gradients flow through both arguments of the KL.

    Deviations: the released code runs the clean images twice, for the cross-entropy and for the KL's target; here one
    forward serves both, which a defence with random masks needs to compare like with like. The released scripts' 0.031
    and 0.007 are the FSR protocol's 8/255 and eps/4.

    Args:
        attack: crafts the training examples; the published one raises the KL.
        beta: weight of the pull.
        concat: one forward, and one BatchNorm batch, for clean and adversarial images.
        share_noise: the defences draw the same noise for clean and adversarial images.

    Raises:
        ValueError: beta is negative.
    """

    needs_clean = True

    def __init__(self, *, attack: Attack, beta: float = 6.0, concat: bool = False, share_noise: bool = False) -> None:
        super().__init__(attack=attack, concat=concat, share_noise=share_noise)
        self.beta = nonnegative("beta", beta)

    def criterion(self, adv: Tensor, clean: Tensor | None, y: Tensor) -> dict[str, Tensor]:
        """Return {"ce", "kl"}."""
        assert clean is not None
        return {"ce": cross_entropy(clean, y).mean(), "kl": self.beta * kl(clean, adv).mean()}

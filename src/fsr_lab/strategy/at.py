"""Adversarial training."""

from torch import Tensor

from fsr_lab.core.losses import cross_entropy
from fsr_lab.strategy.base import Strategy


class AT(Strategy):
    """Cross-entropy on PGD examples alone (Madry et al., 2018, arXiv:1706.06083).

    One training-mode forward per step: BatchNorm's running statistics are adversarial only, as in the released FSR
    code.
    """

    def criterion(self, adv: Tensor, clean: Tensor | None, y: Tensor) -> dict[str, Tensor]:
        """Return {"ce"}, in float32."""
        return {"ce": cross_entropy(adv, y).mean()}

"""Training on clean images: the undefended network that every comparison starts from."""

from torch import Tensor

from fsr_lab.core.losses import cross_entropy
from fsr_lab.core.types import Crafted, Defended, Progress
from fsr_lab.strategy.base import Strategy


class Natural(Strategy):
    """Cross-entropy on clean images; nothing is crafted."""

    def __init__(self) -> None:
        pass

    def craft(self, model: Defended, x: Tensor, y: Tensor, progress: Progress) -> Crafted:
        """Take the clean images themselves."""
        return Crafted(x, x, y)

    def criterion(self, adv: Tensor, clean: Tensor | None, y: Tensor) -> dict[str, Tensor]:
        """Return {"ce"}."""
        return {"ce": cross_entropy(adv, y).mean()}

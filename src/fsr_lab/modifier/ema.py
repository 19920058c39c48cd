"""The exponential moving average of the weights, SEAT's self-ensemble among them."""

from typing import ClassVar

from lightning.pytorch import Trainer

from fsr_lab.modifier.averaging import Averaging


class EMA(Averaging):
    """Exponential moving average, after every optimiser step: theta_e <- d theta_e + (1 - d) theta.

    With `warm_up` it is the self-ensemble of SEAT (Wang and Wang, ICLR 2022, arXiv:2203.09678): d(t) = min(decay,
    (t + 1) / (t + 10)), t counting steps from 0, so that the untrained network is soon forgotten. The online network
    alone crafts, and takes the gradients.

    Args:
        decay: d, or what it rises to.
        warm_up: whether it rises.
        name: see `Averaging`.

    Raises:
        ValueError: a decay outside [0, 1).
    """

    begins_untrained: ClassVar[bool] = True

    def __init__(self, *, decay: float = 0.999, warm_up: bool = True, name: str = "ema") -> None:
        super().__init__(name=name)
        if not 0 <= decay < 1:
            raise ValueError(f"expected the decay of {name} in [0, 1), got {decay}; 0.995 to 0.9999 are usual")
        self.decay = decay
        self.warm_up = warm_up

    def decay_now(self, trainer: Trainer) -> float:
        """Return d(t)."""
        rising = (self.updates + 1) / (self.updates + 10)
        return min(self.decay, rising) if self.warm_up else self.decay

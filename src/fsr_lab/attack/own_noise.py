"""The view of a network with the noise that it draws itself, in training or when deployed."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from fsr_lab.core.types import Classifier


@dataclass(frozen=True)
class OwnNoise:
    """The network as it is: that it is to draw is for the attack to say, which averages over draws (`eot` of APGD).

    What the view adds is the question whether there is any noise: without it every draw is the same.
    """

    is_random: ClassVar[bool] = True
    keeps_values: ClassVar[bool] = True

    def __call__(self, model: Classifier) -> Classifier:
        """Return the network."""
        return model

    def lacks(self, model: Classifier, x: Tensor) -> str | None:
        """Tell that no module of the network declares noise, if none does."""
        modules = model.modules() if isinstance(model, nn.Module) else [model]
        draws = any(
            getattr(module, "training_noise", False) or getattr(module, "eval_noise", False) for module in modules
        )
        return None if draws else "the network declares no noise, neither in training nor deployed"

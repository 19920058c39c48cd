"""What attacks that carry out another one have in common."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from fsr_lab.core.crafting import Policy
from fsr_lab.core.passes import Passes
from fsr_lab.core.threat import Threat
from fsr_lab.core.types import Attack, Classifier, Particular


class Crafter(Attack, Protocol):
    """An attack that tells of itself what an evaluation asks of it."""

    @property
    def threat(self) -> Threat: ...
    @property
    def policy(self) -> Policy: ...
    @property
    def is_random(self) -> bool: ...
    @property
    def exact_on_linear(self) -> bool: ...
    def passes(self, num_classes: int) -> Passes: ...


@dataclass(frozen=True, kw_only=True)
class Wrapper:
    """Carries out another attack, and tells of itself what that one does; how it is carried out, the subclass says.

    Attributes:
        attack: what is carried out.
    """

    attack: Crafter

    @property
    def threat(self) -> Threat:
        """The set searched, which is the attack's."""
        return self.attack.threat

    @property
    def policy(self) -> Policy:
        """Precision of the crafting passes."""
        return self.attack.policy

    @property
    def is_random(self) -> bool:
        """Whether the attack draws random numbers."""
        return self.attack.is_random

    @property
    def exact_on_linear(self) -> bool:
        """Whether the attack reaches the worst point of a linear model."""
        return self.attack.exact_on_linear

    def lacks(self, model: Classifier, x: Tensor) -> str | None:
        """Tell what the attack does not find on a network; see `Particular`."""
        return lack_of(self.attack, model, x)


def lack_of(attack: Attack, model: Classifier, x: Tensor) -> str | None:
    """Tell what an attack does not find on a network, which may be shown x; None: nothing, or it asks for nothing."""
    return attack.lacks(model, x) if isinstance(attack, Particular) else None

"""A family: attacks of one idea, each on what those before it left."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar

from torch import Tensor

from fsr_lab.attack.worst_case import worst_case
from fsr_lab.attack.wrapper import Crafter
from fsr_lab.core.crafting import Policy
from fsr_lab.core.passes import Passes
from fsr_lab.core.threat import Threat
from fsr_lab.core.types import Classifier, Particular


@dataclass(frozen=True, kw_only=True)
class Family:
    """Several attacks in order; an evaluation runs them as a chain, and each has its own row there.

    Attributes:
        attacks: by name, in order.

    Raises:
        ValueError: no attack.
    """

    attacks: Mapping[str, Crafter]

    exact_on_linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.attacks:
            raise ValueError("expected a family of at least one attack")

    @property
    def threat(self) -> Threat:
        """The set searched, which is the first attack's."""
        return next(iter(self.attacks.values())).threat

    @property
    def policy(self) -> Policy:
        """Precision of the first attack's crafting passes."""
        return next(iter(self.attacks.values())).policy

    @property
    def is_random(self) -> bool:
        """Whether any of them draws random numbers."""
        return any(attack.is_random for attack in self.attacks.values())

    def concerning(self, model: Classifier, x: Tensor) -> tuple[dict[str, Crafter], dict[str, str]]:
        """Return the attacks that concern a network, and why each of the others does not; see `Particular`."""
        found = {
            name: attack.lacks(model, x) if isinstance(attack, Particular) else None
            for name, attack in self.attacks.items()
        }
        reasons = {name: lack for name, lack in found.items() if lack is not None}
        return {name: attack for name, attack in self.attacks.items() if name not in reasons}, reasons

    def lacks(self, model: Classifier, x: Tensor) -> str | None:
        """Tell what a network lacks for every one of them, if it does."""
        concerning, reasons = self.concerning(model, x)
        return None if concerning else "; ".join(dict.fromkeys(reasons.values()))

    def passes(self, num_classes: int) -> Passes:
        """Return the most passes of a sample, a look at each attack's result among them; see `Budgeted`."""
        each = [attack.passes(num_classes).plus(Passes(1)) for attack in self.attacks.values()]
        return reduce(Passes.plus, each)

    def __call__(self, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        """Return x_adv (N, C, H, W), detached, in the threat set around x.

        Args:
            model: maps images to logits.
            x: (N, C, H, W) in [0, 1].
            y: (N,) int64 labels.
        """
        return worst_case(self.attacks.values(), model, x, y)

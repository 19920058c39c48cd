"""A family: attacks of one kind, of which each network meets those that concern it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

from torch import Tensor

from fsr_lab.attack.composite import Composite, check_alike
from fsr_lab.attack.worst_case import worst_case
from fsr_lab.attack.wrapper import Crafter, lack_of
from fsr_lab.core.crafting import judging
from fsr_lab.core.passes import Passes
from fsr_lab.core.types import Classifier


@dataclass(frozen=True, kw_only=True)
class Family(Composite):
    """Runs each attack on the samples that withstand those before it; what `worst_case` says of them holds.

    Attacks that look for what a network does not have are left out there. Asking costs a few passes of one image.

    Attributes:
        attacks: by name, in order.

    Raises:
        ValueError: none, or several sets or precisions; when called, a network that none of them concerns.
    """

    attacks: Mapping[str, Crafter]

    def __post_init__(self) -> None:
        object.__setattr__(self, "attacks", dict(self.attacks))
        check_alike(self.members)

    def __hash__(self) -> int:
        return hash(frozenset(self.attacks.items()))

    @property
    def members(self) -> Sequence[Crafter]:
        """The attacks, without their names."""
        return list(self.attacks.values())

    def concerning(self, model: Classifier, x: Tensor) -> tuple[dict[str, Crafter], dict[str, str]]:
        """Return the attacks that concern a network, and of the others what they do not find on it.

        Args:
            model: maps images to logits; asked in eval mode.
            x: (N, C, H, W) images that it may be shown.
        """
        with judging(model) as deployed:
            lacks = {name: lack_of(attack, deployed, x) for name, attack in self.attacks.items()}
        found = {name: attack for name, attack in self.attacks.items() if lacks[name] is None}
        return found, {name: lack for name, lack in lacks.items() if lack is not None}

    def lacks(self, model: Classifier, x: Tensor) -> str | None:
        """Tell why none of them concerns a network, if none does."""
        found, reasons = self.concerning(model, x)
        return None if found else "; ".join(f"{name}: {reason}" for name, reason in reasons.items())

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
        attacks, reasons = self.concerning(model, x)
        if not attacks:
            raise ValueError(f"no attack of this family concerns the network: {reasons}")
        return worst_case(attacks.values(), model, x, y)

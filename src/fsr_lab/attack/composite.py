"""What attacks that carry out several others have in common."""

from collections.abc import Sequence
from typing import ClassVar

from fsr_lab.attack.wrapper import Crafter
from fsr_lab.core.crafting import Policy
from fsr_lab.core.threat import Threat


class Composite:
    """Carries out several attacks on one set in one precision; which and how, the subclass says."""

    exact_on_linear: ClassVar[bool] = False
    """Not declared: one of them may be, but who is fooled before leaves it no sample."""

    @property
    def members(self) -> Sequence[Crafter]:
        """What is carried out, in order."""
        raise TypeError(f"{type(self).__name__} must define members")

    @property
    def threat(self) -> Threat:
        """The set searched, which is that of each."""
        return self.members[0].threat

    @property
    def policy(self) -> Policy:
        """Precision of the crafting passes, which is that of each."""
        return self.members[0].policy

    @property
    def is_random(self) -> bool:
        """Whether one of them draws random numbers."""
        return any(member.is_random for member in self.members)


def check_alike(members: Sequence[Crafter]) -> None:
    """Refuse to carry out nothing, or attacks of several sets or precisions.

    Raises:
        ValueError: that is the case.
    """
    if not members:
        raise ValueError("expected at least one attack to carry out, got none")
    for kind in ("threat", "policy"):
        found = {str(getattr(member, kind)) for member in members}
        if len(found) > 1:
            raise ValueError(f"expected attacks of one {kind}, got {', '.join(sorted(found))}")

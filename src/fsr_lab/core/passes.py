"""What an attack costs at most, known before it is run: passes through a network for one sample."""

from typing import NamedTuple, Protocol, runtime_checkable


class Passes(NamedTuple):
    """The most passes that one sample takes, which is when it withstands to the end.

    Attributes:
        forwards: through the attacked network, the deployed model's looks at what was found among them.
        gradients: of it.
        elsewhere: forwards and gradients of other networks, such as the source of a transfer.
    """

    forwards: int
    gradients: int = 0
    elsewhere: tuple[int, int] = (0, 0)

    def times(self, count: int) -> "Passes":
        """Return the passes of as many runs."""
        forwards, gradients = self.elsewhere
        return Passes(count * self.forwards, count * self.gradients, (count * forwards, count * gradients))

    def plus(self, other: "Passes") -> "Passes":
        """Return the passes of both."""
        (mine, my_gradients), (theirs, their_gradients) = self.elsewhere, other.elsewhere
        elsewhere = mine + theirs, my_gradients + their_gradients
        return Passes(self.forwards + other.forwards, self.gradients + other.gradients, elsewhere)


@runtime_checkable
class Budgeted(Protocol):
    """An attack that tells its passes beforehand."""

    def passes(self, num_classes: int) -> Passes:
        """Return the most passes of a sample on a network of so many classes."""
        ...


class Forwards(NamedTuple):
    """Forwards of an objective: `once` to prepare, and `each` time that it is computed."""

    once: int
    each: int


def forwards_of(objective: object) -> Forwards:
    """Return an objective's forwards, at most: one and one of an objective that does not tell `forwards`.

    One that does not asks the very network that it is given, on the very images, so that others may share the pass.
    """
    told: Forwards = getattr(objective, "forwards", Forwards(1, 1))
    return told

"""The check that every strategy makes of its weights."""


def nonnegative(name: str, value: float) -> float:
    """Return a loss term's weight.

    Raises:
        ValueError: it is negative, or no number.
    """
    if not value >= 0:
        raise ValueError(f"expected {name} of at least 0, got {value}")
    return value

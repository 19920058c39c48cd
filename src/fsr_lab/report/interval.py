"""Intervals for proportions."""

import math
from typing import NamedTuple


class Interval(NamedTuple):
    """Lower and upper end, as fractions of one."""

    low: float
    high: float


def wilson(successes: int, n: int, z: float = 1.959963984540054) -> Interval:
    """Return Wilson's score interval for a proportion, 95 % by default.

    Source: Wilson, 1927, "Probable inference, the law of succession, and statistical inference".

    Raises:
        ValueError: no trials, or more successes than trials.
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"expected 0 <= successes <= n and n of at least 1, got {successes} of {n}")
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # the exact ends at 0 and n; rounding would leave 1e-17 there
    return Interval(0.0 if successes == 0 else centre - half, 1.0 if successes == n else centre + half)

"""Numbers as users write them: pixel quantities are fractions of one, `8/255` in a config, 0.0313… in code."""

import math
from fractions import Fraction


def fraction(value: str | float) -> float:
    """Read "8/255", "0.03" or a number as a finite float that is not negative.

    Raises:
        ValueError: the text is no number or fraction, or the value is negative or not finite.
    """
    try:
        number = float(Fraction(value)) if isinstance(value, str) else float(value)
    except (ValueError, ZeroDivisionError, TypeError) as err:
        raise ValueError(f"expected a number or a fraction such as 8/255, got {value!r}") from err
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"expected a finite value of at least 0, such as 8/255, got {value!r}")
    return number


def nonnegative(name: str, value: float) -> float:
    """Return a loss term's weight.

    Raises:
        ValueError: it is negative, or no finite number.
    """
    if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError(f"expected {name} of at least 0, got {value}")
    return value


def whole(name: str, value: int, least: int = 0) -> int:
    """Return a count.

    Raises:
        ValueError: it is no whole number, or below the least.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"expected {name} to be a whole number of at least {least}, got {value}")
    return value


def as_fraction(value: float, denominator: int = 255) -> str:
    """Write a pixel quantity the way the field reads it: 8/255 where it is that, a plain number elsewhere."""
    levels = value * denominator
    return f"{levels:.0f}/{denominator}" if math.isclose(levels, round(levels), abs_tol=1e-9) else f"{value:g}"

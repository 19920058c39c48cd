import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsr_lab.core.units import as_fraction, fraction, nonnegative


@pytest.mark.parametrize(
    ("text", "value"),
    [("8/255", 8 / 255), ("0.03", 0.03), ("1e-2", 0.01), (" 4/255 ", 4 / 255), (0.5, 0.5), (1, 1.0), ("0", 0.0)],
)
def test_numbers_and_fractions_are_read(text, value):
    found = fraction(text)
    assert type(found) is float
    assert found == value


@pytest.mark.parametrize("value", ["eight", "", "8/0", "8 of 255", None, [8, 255], "8/255/2"])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(ValueError, match="expected a number or a fraction such as 8/255, got") as caught:
        fraction(value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [-1, "-8/255", -1e-9, math.nan, math.inf, "nan", "inf", -math.inf])
def test_negative_and_infinite_values_are_refused(value):
    with pytest.raises(ValueError, match="expected"):
        fraction(value)


def test_the_message_for_a_negative_value_says_the_least_one():
    with pytest.raises(ValueError, match="finite value of at least 0, such as 8/255, got '-8/255'"):
        fraction("-8/255")


@given(st.integers(0, 255))
def test_levels_are_written_as_the_field_writes_them(level):
    assert as_fraction(level / 255) == f"{level}/255"
    assert fraction(as_fraction(level / 255)) == level / 255


def test_other_values_are_written_plainly():
    assert as_fraction(0.12) == "0.12"
    assert as_fraction(0.3, denominator=10) == "3/10"


@pytest.mark.parametrize("value", [-1e-9, float("nan"), float("inf")])
def test_a_weight_is_a_finite_number_of_at_least_nought(value):
    assert nonnegative("beta", 0) == 0
    with pytest.raises(ValueError, match=r"^expected beta of at least 0, got "):
        nonnegative("beta", value)

import pytest
from scipy.stats import binomtest

from fsr_lab.report.interval import wilson

CASES = [(k, n) for n in (1, 2, 10, 360, 10_000) for k in sorted({0, 1, n // 3, n - 1, n})]


@pytest.mark.parametrize(("successes", "n"), CASES)
def test_it_is_scipys(successes, n):
    wanted = binomtest(successes, n).proportion_ci(confidence_level=0.95, method="wilson")
    found = wilson(successes, n)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-12)
    assert 0 <= found.low <= successes / n <= found.high <= 1


def test_other_levels():
    wanted = binomtest(7, 20).proportion_ci(confidence_level=0.99, method="wilson")
    assert wilson(7, 20, z=2.5758293035489004) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


def test_the_ends_are_exact():
    assert wilson(0, 50).low == 0.0
    assert wilson(50, 50).high == 1.0
    assert wilson(0, 50).high == pytest.approx(1 - wilson(50, 50).low)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 5), (0, -1)])
def test_impossible_counts_are_refused(successes, n):
    with pytest.raises(ValueError, match=f"and n of at least 1, got {successes} of {n}"):
        wilson(successes, n)

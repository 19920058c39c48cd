"""What is bold: Holm's correction against its definition by closed testing, and the rule case by case."""

from dataclasses import replace
from itertools import chain, combinations
from pathlib import Path

import numpy as np
import pytest
from records import made_record

from fsr_lab.core.record import Finding
from fsr_lab.report.columns import columns_of, value
from fsr_lab.report.grid import Cell, Grid, Line, Number
from fsr_lab.report.significance import holm, with_tests


def closed(ps):
    """Return Holm's adjusted p by what it is: a hypothesis falls if Bonferroni rejects every set that holds it."""
    places = range(len(ps))
    sets = list(chain.from_iterable(combinations(places, size) for size in range(1, len(ps) + 1)))
    return [max(min(1, len(own) * min(ps[each] for each in own)) for own in sets if place in own) for place in places]


@pytest.mark.parametrize("ps", [[0.01], [0.04, 0.01, 0.03], [0.5, 0.9], [0.01, 0.01, 0.2, 0.9, 0.001], [1, 1, 1]])
def test_holm_is_closed_testing_by_bonferroni(ps):
    assert holm(ps) == pytest.approx(closed(ps))


def test_holm_of_nothing():
    assert holm([]) == []


def row(name, *counts, group=0, checkpoint="last", n=400, start=0, findings=()):
    """Return a row of one column, Natural: of each seed how many of n are right, the first from `start` on."""
    numbers = []
    for seed, count in enumerate(counts):
        right = np.roll(np.arange(n) < count, start)
        record = replace(made_record({"clean": right}, name=name, seed=seed), findings=findings)
        (column,) = columns_of(record)
        numbers.append(Number(value(record, column), seed, Path(f"{name}{seed}.json"), record))
    return Line(name=name, checkpoint=checkpoint, group=group, cells=(Cell(numbers=tuple(numbers)),))


def bold(*lines, reference=None):
    grid, refused = with_tests(Grid(title="t", headings=("Natural",), lines=lines), reference)
    assert refused == []
    return [line.name for line in grid.lines if line.cells[0].is_bold]


def test_a_clear_difference_is_bold():
    assert bold(row("low", 200), row("high", 260)) == ["high"]


def test_a_difference_within_chance_is_not():
    # one more of 400, on other images: 40 against 41 discordant pairs
    assert bold(row("low", 200), row("high", 201, start=40)) == []


def test_equal_rows_are_not_even_when_both_beat_a_third():
    assert bold(row("low", 100), row("one", 300), row("two", 300)) == []


def test_the_highest_must_beat_every_other_of_its_group():
    assert bold(row("low", 100), row("middle", 200), row("high", 300)) == ["high"]
    assert bold(row("low", 100), row("middle", 299, start=1), row("high", 300)) == []


def test_every_seed_must_say_so():
    assert bold(row("low", 200, 200), row("high", 260, 260)) == ["high"]
    assert bold(row("low", 200, 260), row("high", 290, 255)) == []


def test_groups_and_checkpoints_do_not_meet():
    lines = (row("low", 200), row("best", 300, checkpoint="best"), row("other", 300, group=1))
    assert bold(*lines) == []
    grid, _ = with_tests(Grid(title="t", headings=("Natural",), lines=lines))
    assert grid.tests == ()


def test_of_a_reference_each_is_tested_against_it_alone():
    lines = (row("one", 250), row("reference", 200), row("two", 260, start=10))
    grid, _ = with_tests(Grid(title="t", headings=("Natural",), lines=lines), "reference")
    assert [(grid.lines[test.first].name, grid.lines[test.second].name) for test in grid.tests] == [
        ("reference", "one"), ("reference", "two"),
    ]  # fmt: skip
    assert [line.name for line in grid.lines if line.cells[0].is_bold] == ["two"]


def test_what_a_failed_check_touches_is_neither_tested_nor_bold_nor_a_rival():
    failed = Finding("train-mode", "fail", 1.0, "a layer is in training mode", ())
    lines = row("low", 100), row("high", 200), row("broken", 380, findings=(failed,))
    grid, (told,) = with_tests(Grid(title="t", headings=("Natural",), lines=lines))
    assert [line.name for line in grid.lines if line.cells[0].is_bold] == ["high"]
    assert {(test.first, test.second) for test in grid.tests} == {(0, 1)}
    assert told.startswith("t, broken (last), Natural: a check of its evaluation failed")


def test_many_tests_need_more():
    # 12 discordant pairs, all one way: p = 2 / 2^12, which times 136 comparisons is no longer below 5 %
    pair = (row("low", 200), row("high", 212))
    assert bold(*pair) == ["high"]
    others = [row(f"pair{place}", 200, group=place) for place in range(1, 136) for _ in (0, 1)]
    assert bold(*pair, *others) == []


def test_other_images_are_refused_with_what_differs():
    one, other = row("one", 50, n=100), row("two", 60, n=80)
    grid, refused = with_tests(Grid(title="t", headings=("Natural",), lines=(one, other)))
    assert grid.tests == ()
    (said,) = refused
    assert "not of the same samples (100 and 80)" in said
    assert "one (last) and two (last), Natural" in said


def test_seeds_that_only_one_row_has_are_left_out():
    grid, _ = with_tests(Grid(title="t", headings=("Natural",), lines=(row("one", 50, 60), row("two", 70))))
    assert [test.seed for test in grid.tests] == [0]

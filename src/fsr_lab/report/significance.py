"""Which differences in a grid are more than chance: McNemar's test between rows, Holm's correction, what is bold."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations

from fsr_lab.core.record import EvaluationRecord
from fsr_lab.report.grid import Cell, Grid, Line, RowTest
from fsr_lab.report.paired import Comparison, Paired, compare

LEVEL = 0.05
FAILED = "a check of its evaluation failed, and the number is not to be believed; see the findings"
UNLIKE = "the attack has other settings in the two; evaluate both alike to compare them"

RULE = (
    "Bold: the highest number of its group in a column, where McNemar's exact two-sided test on the same test images "
    "tells it from each row that it is tested against, at 5 % after Holm's correction for all tests of the table on "
    "the same checkpoint, and so for every seed that both rows have. A number marked † is neither tested nor bold. The "
    "test speaks of these networks on these images; what other seeds would give, several seeds tell."
)


def with_tests(grid: Grid, reference: str | None = None) -> tuple[Grid, list[str]]:
    """Return a grid with the tests between the rows of each group, and bold where these say so; and what was refused.

    Args:
        grid: without tests.
        reference: name of the row that each other one is tested against; None tests each against each.

    Returns:
        The grid, and a line of cause and cure for each two rows that may not be compared: of other images or another
        threat, or under attacks of other settings; and for each row with numbers that a failed check touches.
    """
    found: list[RowTest] = []
    untested: dict[tuple[str, str], dict[str, None]] = {}
    seen: dict[tuple[int, int], Comparison | str] = {}
    for first, second in _pairs(grid.lines, reference):
        for column, heading in enumerate(grid.headings):
            one, other = grid.lines[first].cells[column], grid.lines[second].cells[column]
            failed = [line for line in (grid.lines[first], grid.lines[second]) if line.cells[column].mark]
            for line in failed:
                untested.setdefault((line.title, FAILED), {})[heading] = None
            for seed, left, right in [] if failed else _of_one_seed(one, other):
                key = (id(left), id(right))
                if key not in seen:
                    seen[key] = _compared(left, right)
                paired = _paired(seen[key], heading)
                if isinstance(paired, str):
                    names = f"{grid.lines[first].title} and {grid.lines[second].title}"
                    untested.setdefault((names, paired), {})[heading] = None
                    continue
                checkpoint = grid.lines[first].checkpoint
                found.append(RowTest(heading, checkpoint, first, second, seed, paired, paired.p))
    refused = [f"{grid.title}, {names}, {', '.join(own)}: {why}" for (names, why), own in untested.items()]
    tests = _adjusted(found)
    lines = tuple(
        replace(line, cells=tuple(
            replace(cell, is_bold=_is_bold(grid, tests, place, column)) for column, cell in enumerate(line.cells)
        ))
        for place, line in enumerate(grid.lines)
    )  # fmt: skip
    return replace(grid, lines=lines, tests=tuple(tests), untested=tuple(refused)), refused


def holm(ps: Sequence[float]) -> list[float]:
    """Return p values after Holm's step-down correction, in the order given.

    Source: Holm, 1979, "A simple sequentially rejective multiple test procedure".
    """
    order = sorted(range(len(ps)), key=lambda place: ps[place])
    found = [0.0] * len(ps)
    highest = 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[place]))
        found[place] = highest
    return found


def _pairs(lines: Sequence[Line], reference: str | None) -> Iterator[tuple[int, int]]:
    """Yield the places of rows of one group and checkpoint; a reference is always the first of two."""
    for first, second in combinations(range(len(lines)), 2):
        one, other = lines[first], lines[second]
        if (one.group, one.checkpoint) != (other.group, other.checkpoint):
            continue
        if reference is None or one.name == reference:
            yield first, second
        elif other.name == reference:
            yield second, first


def _of_one_seed(one: Cell, other: Cell) -> Iterator[tuple[int, EvaluationRecord, EvaluationRecord]]:
    right = {number.seed: number.record for number in other.numbers}
    for number in one.numbers:
        record = right.get(number.seed)
        if number.record is not None and record is not None:
            yield number.seed, number.record, record


def _compared(left: EvaluationRecord, right: EvaluationRecord) -> Comparison | str:
    try:
        return compare(left, right)
    except ValueError as err:
        return str(err)


def _paired(comparison: Comparison | str, heading: str) -> Paired | str:
    """Return the test in one column, or why there is none."""
    if isinstance(comparison, str):
        return comparison
    return next((each for each in comparison.columns if each.heading == heading), UNLIKE)


def _adjusted(tests: Sequence[RowTest]) -> list[RowTest]:
    found = list(tests)
    for checkpoint in {test.checkpoint for test in tests}:
        own = [place for place, test in enumerate(tests) if test.checkpoint == checkpoint]
        for place, p in zip(own, holm([tests[place].paired.p for place in own]), strict=True):
            found[place] = tests[place]._replace(adjusted=p)
    return found


def _is_bold(grid: Grid, tests: Sequence[RowTest], place: int, column: int) -> bool:
    """Tell whether a row is the highest of its group in a column, and significantly so wherever it was tested.

    A number that a failed check touches neither is the highest nor keeps another from being it.
    """
    line = grid.lines[place]
    mean = line.cells[column].mean
    rivals = [
        other.cells[column].mean for index, other in enumerate(grid.lines)
        if index != place and (other.group, other.checkpoint) == (line.group, line.checkpoint)
        and not other.cells[column].mark
    ]  # fmt: skip
    if mean is None or line.cells[column].mark or any(rival is not None and rival >= mean for rival in rivals):
        return False
    own = [test for test in tests if test.heading == grid.headings[column] and place in (test.first, test.second)]
    wins = [(test.paired.difference > 0) == (place == test.second) and test.paired.difference != 0 for test in own]
    return bool(own) and all(wins) and all(test.adjusted < LEVEL for test in own)

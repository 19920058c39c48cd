"""The rule by which Auto-PGD halves steps, followed by hand."""

import pytest
import torch

from fsr_lab.attack.step_schedule import Pace, checkpoints


def test_checkpoints_of_a_hundred_steps():
    assert checkpoints(100) == {22: 22, 41: 19, 57: 16, 70: 13, 80: 10, 87: 7, 93: 6, 99: 6}


def test_checkpoints_of_few_steps():
    assert checkpoints(5) == {1: 1, 2: 1, 3: 1, 4: 1, 5: 1}


def followed(start, *windows):
    """Return whether each window of losses ends in a halving, of a first step of 8, and the step at the end."""
    pace = Pace.start(torch.tensor([start]), size=8.0)
    halved = []
    for window in windows:
        for loss in window:
            pace = pace.after(torch.tensor([loss]))
        pace = pace.reviewed(len(window), 0.75)
        halved.append(pace.halved.item())
    return halved, pace.size.item()


@pytest.mark.parametrize(
    ("start", "windows", "halved"),
    [
        (1.0, [(2.0, 3.0, 4.0, 5.0)], [False]),  # four rises of four
        (1.0, [(2.0, 3.0, 4.0, 3.5)], [True]),  # three of four is no more than rho
        (1.0, [(2.0, 3.0, 4.0, 5.0), (6.0, 4.0)], [False, True]),
        (1.0, [(2.0, 3.0, 4.0, 5.0), (6.0, 4.0), (7.0, 8.0)], [False, True, False]),
        # ever rising, but the best loss is the start's: halved for that at the second checkpoint, not at the first,
        # and not at the one after a halving
        (9.0, [(1.0, 2.0), (3.0, 4.0)], [False, True]),
        (9.0, [(1.0, 2.0), (3.0, 4.0), (5.0, 6.0), (7.0, 8.0)], [False, True, False, True]),
        # the released code compares the first iterate with 0, not with the start
        (-9.0, [(-4.0, -3.0, -2.0, -1.0)], [True]),
        (9.0, [(4.0, 5.0, 6.0, 7.0)], [False]),
    ],
)
def test_the_step_is_halved_where_progress_stops(start, windows, halved):
    assert followed(start, *windows) == (halved, 8.0 / 2 ** sum(halved))


def test_samples_are_paced_apart():
    pace = Pace.start(torch.tensor([1.0, 1.0]), size=2.0)
    for loss in ([2.0, 2.0], [3.0, 1.0]):
        pace = pace.after(torch.tensor(loss))
    pace = pace.reviewed(2, 0.75)
    assert pace.size.tolist() == [2.0, 1.0]
    assert pace.best.tolist() == [3.0, 2.0]
    assert pace.rows(torch.tensor([1])).size.tolist() == [1.0]

"""Timing one piece of work right after its baseline, round after round."""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch


class Work(NamedTuple):
    """One piece of work, timed beside a baseline; the ratio is baseline / work (a speed-up) or its inverse (a cost)."""

    name: str
    target: str
    run: Callable[[], object]
    is_cost: bool


class Group(NamedTuple):
    """Works that share a baseline."""

    baseline: Callable[[], object]
    works: list[Work]


class Result(NamedTuple):
    name: str
    target: str
    ratio: float
    lowest: float
    highest: float
    rounds: int
    ours_ms: float
    other_ms: float


def seconds_of(work: Callable[[], object]) -> float:
    """Time one piece of work, unless it times itself and says so by returning a float."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    told = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return told if isinstance(told, float) else time.perf_counter() - start


def measure(group: Group, count: int) -> Iterator[Result]:
    """Time each work right after the baseline, `count` rounds after a warm-up: medians of the pairs' ratios."""
    for run in (group.baseline, *(work.run for work in group.works)):
        seconds_of(run)
    rounds = [[(seconds_of(group.baseline), seconds_of(work.run)) for work in group.works] for _ in range(count)]
    for work, pairs in zip(group.works, zip(*rounds, strict=True), strict=True):
        ratios = [ours / base if work.is_cost else base / ours for base, ours in pairs]
        base, ours = (1000 * statistics.median(column) for column in zip(*pairs, strict=True))
        yield Result(work.name, work.target, statistics.median(ratios), min(ratios), max(ratios), count, ours, base)

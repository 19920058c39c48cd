"""What a record's own numbers say about the attacks that made them."""

import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from fsr_lab.core.attack_kinds import STEPS, adaptive_families, is_gradient_free, steps_of
from fsr_lab.core.record import CLEAN, NOT_RUN, WRONG, EvaluationRecord, Finding
from fsr_lab.evaluation.sanity import NORM_SLACK

POINTS = 0.002
"""Accuracies may be out of order by this without meaning anything; AutoAttack's limit for Square over its others."""
MANY_POINTS = 0.01
"""By this they may not: papers report differences of one point as progress."""

WAY_THERE = re.compile(r"\b(steps|relative_step|random_start)=[^,)]+")
"""What FGSM and PGD differ in."""


def inside_ball(record: EvaluationRecord) -> Finding | None:
    """Check that every perturbation lies in the threat set, as the evaluator measured it."""
    run = record.outcome != NOT_RUN
    if not run.any():
        return None
    outside = run & ~(record.norm <= record.threat.eps + NORM_SLACK)  # a NaN is outside, too
    share = float(outside.sum() / run.sum())
    guilty = tuple(name for name, row in zip(record.attacks, outside, strict=True) if row.any())
    largest = record.norm[record.norm >= 0].max(initial=0)
    text = f"{share:.1%} of the perturbations are larger than {record.threat}; the largest is {largest:.6f}"
    return Finding("inside-ball", "fail" if guilty else "pass", share, text, guilty)


def gradient_free(record: EvaluationRecord) -> Finding | None:
    """Check that no attack without the network's gradients leaves fewer right than all attacks with them.

    Adaptive attacks are left to the verdict, whose limits are theirs: they search longer than AutoAttack's Square.
    """
    adaptive = {name for family in adaptive_families(record).values() for name in family}
    ours = [name for name in record.attacks if name != CLEAN and name not in adaptive]
    free = {name for name in ours if is_gradient_free(record, name)}
    led = tuple(name for name in ours if name not in free)
    leads = {name: lead for name in ours if name in free and (lead := _lead(record, name, led)) is not None}
    if not leads:
        return None
    best = max(leads, key=lambda name: leads[name].points)
    points, behind = leads[best]
    said = f"{best}, which needs no gradient, is ahead of the gradient attacks by {_points(points)}"
    if _exceeds(points, POINTS, record):
        return Finding("gradient-free", "fail", points, f"{said}: gradients mislead or they are too weak", behind)
    return Finding("gradient-free", "pass", points, said)


def more_steps(record: EvaluationRecord) -> Finding | None:
    """Check that of attacks that are equal but for their steps, the longer leaves no more right."""
    groups = defaultdict(list)
    for name, steps in _steps(record):
        groups[STEPS.sub("steps=", record.settings[name])].append((steps, name))
    pairs = [pair for group in groups.values() for pair in pairwise(sorted(group))]
    rises = [(_accuracy(record, long) - _accuracy(record, short), long, short) for (_, short), (_, long) in pairs]
    if not rises:
        return None
    rise, long, short = max(rises)
    said = f"{long} leaves {_points(rise)} more right than {short}"
    return _graded(record, "more-steps", rise, said, (short, long))


def fgsm(record: EvaluationRecord) -> Finding | None:
    """Check that one step of an attack leaves no less right than many steps with the same loss."""
    groups = defaultdict(list)
    for name, steps in _steps(record):
        groups[WAY_THERE.sub("", record.settings[name])].append((steps, name))
    rises = [
        (_accuracy(record, many) - _accuracy(record, one), many, one)
        for group in groups.values()
        for steps_one, one in group
        for steps_many, many in group
        if steps_one == 1 < steps_many
    ]
    if not rises:
        return None
    rise, many, one = max(rises)
    return _graded(record, "fgsm", rise, f"{many} leaves {_points(rise)} more right than {one}'s single step", (many,))


def ensemble(record: EvaluationRecord) -> Finding | None:
    """Check that the worst case over all attacks, by margins, is no more than any single attack, by outcomes."""
    rows = [index for index, row in enumerate(record.outcome) if not (row == NOT_RUN).any()]
    if not rows:
        return None
    withstood = (record.margin > 0) | (record.outcome == NOT_RUN)
    worst = float(withstood.all(axis=0).mean())
    accuracies = (record.outcome[rows] != WRONG).mean(axis=1)
    least = int(accuracies.argmin())
    gap = worst - float(accuracies[least])
    text = f"the worst case over all attacks leaves {worst:.2%} right, {record.attacks[rows[least]]} alone "
    text += f"{accuracies[least]:.2%}"
    if gap > 0:
        return Finding("ensemble", "fail", gap, f"{text}: margins and outcomes are not of one evaluation")
    return Finding("ensemble", "pass", gap, text)


class _Lead(NamedTuple):
    """By how much an attack leaves fewer right than the gradient attacks `behind` it."""

    points: float
    behind: tuple[str, ...]


def _lead(record: EvaluationRecord, name: str, led: tuple[str, ...]) -> _Lead | None:
    """Return an attack's lead over those with gradients; None where there is none of these to compare with.

    One that was run on all samples is compared with the strongest of them, single or those of a chain. One that only
    saw what the attacks before it in a chain had left is ahead by what it takes from these, if none with gradients
    comes after it there.
    """
    row = record.outcome[record.attacks.index(name)]
    if not (row == NOT_RUN).any():
        rivals: list[tuple[str, ...]] = [(attack,) for attack in led if _is_whole(record, attack)]
        chained = [tuple(attack for attack in chain if attack in led) for chain in record.chains.values()]
        rivals += [(CLEAN, *attacks) for attacks in chained if attacks]
        return _Lead(min(_lead_over(record, name, attacks) for attacks in rivals), led) if rivals else None
    before = [chain[: chain.index(name)] for chain in record.chains.values() if _comes_last(name, chain, led)]
    if not before:
        return None
    behind = tuple(attack for attack in max(before, key=len) if attack in led)
    return _Lead(float((row == WRONG).mean()), behind)


def _comes_last(name: str, chain: tuple[str, ...], led: tuple[str, ...]) -> bool:
    """Tell whether an attack stands in a chain behind all of its attacks with gradients, of which there are some."""
    with_gradients = [place for place, attack in enumerate(chain) if attack in led]
    return name in chain and bool(with_gradients) and max(with_gradients) < chain.index(name)


def _lead_over(record: EvaluationRecord, name: str, rivals: tuple[str, ...]) -> float:
    """Return by how much an attack leaves fewer right than others do together.

    What another attack broke before the others in their chain came to it tells nothing of them, and is left out.
    """
    rows = record.outcome[[record.attacks.index(rival) for rival in rivals]]
    withstood = record.worst_case(rivals)
    is_known = ~withstood | ~(rows == NOT_RUN).any(axis=0)
    return float((is_known & withstood).mean() - (is_known & record.worst_case((name,))).mean())


def _steps(record: EvaluationRecord) -> Iterator[tuple[str, int]]:
    """Yield the attacks that were run on all samples and have a number of steps, with it."""
    for name in record.attacks:
        steps = steps_of(record, name)
        if steps and _is_whole(record, name):
            yield name, steps


def _is_whole(record: EvaluationRecord, name: str) -> bool:
    return not (record.outcome[record.attacks.index(name)] == NOT_RUN).any()


def _accuracy(record: EvaluationRecord, name: str) -> float:
    return float(record.correct(name).mean())


def _graded(record: EvaluationRecord, check: str, rise: float, said: str, attacks: tuple[str, ...]) -> Finding:
    """Grade an accuracy that is higher than it should be."""
    if _exceeds(rise, MANY_POINTS, record, luck=2):
        return Finding(check, "fail", rise, f"{said}: the gradient does not tell the way", attacks)
    if _exceeds(rise, POINTS, record):
        return Finding(check, "warn", rise, f"{said}: the attack does not converge", attacks)
    return Finding(check, "pass", rise, said)


def _exceeds(difference: float, limit: float, record: EvaluationRecord, luck: int = 1) -> bool:
    """Tell whether a difference of accuracies is above a limit, and more than `luck` samples; rounding aside."""
    return difference > max(limit, luck / len(record)) + 1e-9


def _points(share: float) -> str:
    return f"{100 * share:+.2f} points"

"""Attacks that are too long for every evaluation, and whose outcome on a sound network is known beforehand."""

from itertools import combinations, pairwise

from fsr_lab.attack.square import Square
from fsr_lab.core.record import Finding
from fsr_lab.core.units import as_fraction
from fsr_lab.evaluation.attack_checks import graded
from fsr_lab.evaluation.subject import FEW, LONG, Subject

FALL_WARN, FALL_FAIL = 0.1, 0.3
"""Fall of the loss, as a part of all its way. A step of a tenth of eps may lead back by a tenth of the way to the edge;
three of them are no rounding of a last iterate."""
LITTLE = 1e-3
"""A loss that moves by less, in nats, has not moved."""
RUNGS = 6
FARTHEST = 64 / 255
"""Where a picture of an L-infinity ball is no longer one of its class; METHOD's last rung."""
NEAR_ZERO = 0.05
"""What a weak attack, 20 steps without restarts, may leave there of a sound network."""
QUERIES = 500


def loss_rises(subject: Subject) -> Finding:
    """Check that PGD's loss does not fall from 1 step to 10, 100 and 1000."""
    losses = {steps: standing.loss for steps, standing in subject.long_climb.items()}
    way = max(losses.values()) - min(losses.values())
    fall = max(before - after for before, after in combinations(losses.values(), 2))
    share = max(fall, 0.0) / max(way, LITTLE)
    said = "loss " + ", ".join(f"{loss:.3g} after {steps}" for steps, loss in losses.items()) + " steps"
    if share <= FALL_WARN:
        return Finding("loss-rises", "pass", share, said)
    text = f"{said}: it falls by {share:.0%} of its way where the gradient should raise it"
    return Finding("loss-rises", "fail" if share > FALL_FAIL else "warn", share, text)


def thousand_steps(subject: Subject) -> Finding:
    """Check that PGD's 1000 steps leave about as many as its 100: else attacks of 100 have not converged."""
    *_, hundred, thousand = (subject.long_climb[steps].accuracy for steps in LONG)
    lead = hundred - thousand
    said = f"accuracy {hundred:.1%} under PGD-{LONG[-2]}, {thousand:.1%} under PGD-{LONG[-1]}"
    verdict = graded(lead, min(FEW, len(subject.x)))
    if verdict != "pass":
        said += f": {LONG[-2]} steps are too few here"
    return Finding("thousand-steps", verdict, lead, said)


def eps_ladder(subject: Subject) -> Finding | None:
    """Check that the accuracy falls with the radius, to next to nothing at 64/255 (L2: at eight times eps).

    Six radii, each twice the one before; up to eight times eps where that is more, but half of the pixel range at most.
    """
    threat = subject.threat
    grey = 0.5 if threat.norm == "linf" else 0.5 * subject.x[0].numel() ** 0.5
    last = min(max(8 * threat.eps, FARTHEST if threat.norm == "linf" else 0), grey)
    if not last:
        return None
    ladder = {0.0: subject.clean}
    for eps in (last / 2**rung for rung in reversed(range(RUNGS))):
        ladder[eps] = subject.under_pgd(eps, steps=20, relative_step=0.1)
    left = ladder[last]
    rise = max(after - before for before, after in pairwise(ladder.values()))
    said = "accuracy " + ", ".join(f"{accuracy:.1%} at eps {as_fraction(eps)}" for eps, accuracy in ladder.items())
    if left > max(subject.commonest, NEAR_ZERO):
        text = f"{said}; at the last {subject.commonest:.1%} is what one label for all would give"
        return Finding("eps-ladder", "fail", left, text)
    if graded(rise, len(subject.x)) != "pass":
        return Finding("eps-ladder", "warn", rise, f"{said}: it rises by {rise:.1%} with a larger radius")
    if left > max(NEAR_ZERO, 1 / len(subject.x)):
        return Finding("eps-ladder", "warn", left, f"{said}: next to nothing should be left at the last")
    return Finding("eps-ladder", "pass", left, said)


def black_box(subject: Subject) -> Finding:
    """Check that a few queries without gradients leave no less than PGD does."""
    square = Square(threat=subject.threat, queries=QUERIES)
    left, white = subject.accuracy(square(subject.model, subject.x, subject.y)), min(subject.climb.values())
    lead = white - left
    verdict = graded(lead, len(subject.x))
    said = f"accuracy {left:.1%} under Square with {QUERIES} queries, {white:.1%} under PGD"
    if verdict != "pass":
        said += ": who does not see the gradient is ahead of who does"
    return Finding("black-box", verdict, lead, said)

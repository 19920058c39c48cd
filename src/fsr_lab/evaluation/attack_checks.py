"""Whether gradients lead an attack anywhere: small attacks whose outcome on a sound network is known beforehand."""

from itertools import pairwise

from torch import Tensor

from fsr_lab.core.losses import cross_entropy, margin
from fsr_lab.core.record import Finding
from fsr_lab.core.units import as_fraction
from fsr_lab.evaluation.subject import Subject

BLIND_WARN, BLIND_FAIL = 0.05, 0.5
"""Share of samples that gradient attacks cannot move. By as much they may overstate the robust accuracy: above the
first by more than the differences that papers report; above the second they measure the mask, not the network."""
RISE_WARN, RISE_FAIL = 0.03, 0.1
"""Rise of the accuracy where it should fall. Of 64 images, two may be chance (an iterate that steps back over the
boundary), and seven are not."""


def gradients(subject: Subject) -> Finding:
    """Check that the input gradient of the cross-entropy is finite, and exactly zero for next to no sample.

    A confidently right sample has one: in float32 p_y rounds to 1 from a margin of 17 on, but the other classes'
    probabilities are above zero up to a margin of about 100. Beyond that the loss is what saturates, and a margin loss
    still sees the network; where that is blind, too, the network's own layers are.
    """
    try:
        gradient = subject.input_gradient(cross_entropy)
    except RuntimeError as err:
        text = f"no gradient reaches the images ({_first_line(err)}); attack by queries, or replace the layer (BPDA)"
        return Finding("gradients", "fail", 1.0, text)
    if not gradient.isfinite().all():
        share = float((~gradient.isfinite()).any(1).float().mean())
        text = f"{share:.1%} of the images have NaN or infinite gradients; attacks on them return no image"
        return Finding("gradients", "fail", share, text)
    share = _share_zero(gradient)
    said = f"{share:.1%} of the images have a gradient of exactly zero under cross-entropy"
    if share <= BLIND_WARN:
        return Finding("gradients", "pass", share, said)
    masked = _share_zero(subject.input_gradient(margin))
    if masked > BLIND_FAIL:
        text = f"{said}, and {masked:.1%} under the margin: a saturating layer hides the network from every gradient"
        return Finding("gradients", "fail", share, text)
    text = f"{said}, and {masked:.1%} under the margin: cross-entropy attacks leave them alone, margin losses move more"
    return Finding("gradients", "warn", share, text)


def falls_with_eps(subject: Subject) -> Finding:
    """Check that PGD-10 leaves no more with a larger radius, and chance at most where the ball holds one image for all.

    Within half of the pixel range every image can become the same grey one, on which one label at most is right.
    """
    threat = subject.threat
    grey = 0.5 if threat.norm == "linf" else 0.5 * subject.x[0].numel() ** 0.5
    rungs = {eps: subject.under_pgd(eps) for eps in (threat.eps / 2, grey) if eps != threat.eps}
    rungs |= {0.0: subject.clean, threat.eps: subject.climb[max(subject.climb)]}
    ladder = [rungs[eps] for eps in sorted(rungs)]
    said = "accuracy " + ", ".join(f"{rungs[eps]:.1%} at eps {as_fraction(eps)}" for eps in sorted(rungs))
    if rungs[grey] > subject.commonest:
        text = f"{said}; there every image can be the same grey one, and {subject.commonest:.1%} is the most possible"
        return Finding("falls-with-eps", "fail", rungs[grey], text)
    rise = max(after - before for before, after in pairwise(ladder))
    if graded(rise, len(subject.x)) != "pass":
        return Finding("falls-with-eps", "warn", rise, f"{said}: it rises by {rise:.1%} with a larger radius")
    return Finding("falls-with-eps", "pass", rungs[grey], said)


def falls_with_steps(subject: Subject) -> Finding:
    """Check that PGD leaves no more after more steps, and no more than FGSM's one step does."""
    climb = subject.climb
    counts = sorted(climb)
    rises = [climb[after] - climb[before] for before, after in pairwise(counts)]
    rise = max(*rises, climb[counts[-1]] - subject.fgsm)
    said = f"accuracy {subject.fgsm:.1%} under FGSM, " + ", ".join(f"{climb[n]:.1%} under PGD-{n}" for n in counts)
    verdict = graded(rise, len(subject.x))
    if verdict != "pass":
        said += f": it rises by {rise:.1%} with more steps, which a gradient that tells the way does not make it"
    return Finding("falls-with-steps", verdict, rise, said)


def noise(subject: Subject) -> Finding:
    """Check that a random point of the ball leaves no less than FGSM does."""
    left = subject.accuracy(subject.threat.random_start(subject.x))
    lead = subject.fgsm - left
    verdict = graded(lead, len(subject.x))
    said = f"accuracy {left:.1%} under random noise, {subject.fgsm:.1%} under FGSM"
    if verdict != "pass":
        said += ": the gradient leads less far than chance"
    return Finding("noise", verdict, lead, said)


def graded(rise: float, n: int) -> str:
    """Grade a rise of the accuracy on n images; one sample, or two of a failure, never count."""
    rounding = 1e-6
    if rise > max(RISE_FAIL, 2 / n) + rounding:
        return "fail"
    return "warn" if rise > max(RISE_WARN, 1 / n) + rounding else "pass"


def _share_zero(gradient: Tensor) -> float:
    return float((gradient == 0).all(1).float().mean())


def _first_line(err: Exception) -> str:
    return (str(err).splitlines() or [type(err).__name__])[0]

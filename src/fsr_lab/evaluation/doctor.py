"""The doctor: examines a network before it is attacked, and reviews what the attacks left behind.

Every check is a function of its own and has a paragraph in `core/doctor.md`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from fsr_lab.core.record import EvaluationRecord, Finding
from fsr_lab.core.threat import Threat
from fsr_lab.core.types import Classifier
from fsr_lab.evaluation import attack_checks, deep_checks, mask_checks, network_checks, record_checks
from fsr_lab.evaluation.subject import Subject


class Check(NamedTuple):
    """A check of a network; None where there is nothing to check. It is run where all that it needs have passed."""

    run: Callable[[Subject], Finding | None]
    needs: tuple[str, ...] = ()


_SOUND = ("gradients", "deterministic", "batch-independent")

EXAMINATION: Mapping[str, Check] = {
    "images": Check(network_checks.images),
    "train-mode": Check(network_checks.train_mode),
    "one-tensor": Check(network_checks.one_tensor, ("images",)),
    "finite": Check(network_checks.finite, ("one-tensor",)),
    "labels": Check(network_checks.labels, ("finite",)),
    "logits": Check(network_checks.logits, ("finite",)),
    "deterministic": Check(network_checks.deterministic, ("finite",)),
    "batch-independent": Check(network_checks.batch_independent, ("deterministic",)),
    "buffers": Check(network_checks.buffers, ("finite",)),
    "gradients": Check(attack_checks.gradients, ("labels", "logits")),
    "falls-with-eps": Check(attack_checks.falls_with_eps, _SOUND),
    "falls-with-steps": Check(attack_checks.falls_with_steps, _SOUND),
    "noise": Check(attack_checks.noise, _SOUND),
}
"""Each check after those that it needs."""

DEEP: Mapping[str, Check] = {
    "mask-saturation": Check(mask_checks.mask_saturation, ("finite",)),
    "mask-gradient": Check(mask_checks.mask_gradient, ("labels", "logits")),
    "mask-statistics": Check(mask_checks.mask_statistics, _SOUND),
    "training-noise": Check(mask_checks.training_noise, _SOUND),
    "loss-rises": Check(deep_checks.loss_rises, _SOUND),
    "thousand-steps": Check(deep_checks.thousand_steps, _SOUND),
    "eps-ladder": Check(deep_checks.eps_ladder, _SOUND),
    "black-box": Check(deep_checks.black_box, _SOUND),
}
"""What a deep examination adds."""

REVIEW: Mapping[str, Callable[[EvaluationRecord], Finding | None]] = {
    "inside-ball": record_checks.inside_ball,
    "gradient-free": record_checks.gradient_free,
    "more-steps": record_checks.more_steps,
    "fgsm": record_checks.fgsm,
    "ensemble": record_checks.ensemble,
}


def examine(model: Classifier, x: Tensor, y: Tensor, threat: Threat, *, deep: bool = False) -> tuple[Finding, ...]:
    """Examine a network on a few images before it is attacked.

    Costs up to 50 passes forwards and 35 backwards over the images, so 64 of them are plenty; 16 already tell a
    network that cannot be evaluated at all. A deep examination of 64 adds up to 920 forwards and 380 backwards: long
    attacks, and what the masks of a defence do to gradients and statistics.

    Computes in float32 and eval mode, as attacks do. The model's mode and buffers and the random state of torch, numpy
    and Python are put back; the state of a callable that is no `nn.Module` cannot be.

    A check is left out where one that it needs did not pass: a network that returns probabilities has no gradients
    worth a look, and one without gradients no accuracy worth a ladder. `left_out` names these.

    Args:
        model: maps images to logits; any callable, however broken.
        x: (N, C, H, W), to be in [0, 1].
        y: (N,), to be int64 in [0, K).
        threat: the evaluation's.
        deep: make the checks of `DEEP`, too.

    Returns:
        A finding per check that was run and concerns the network. What the network raises during a check fails it;
        nothing else is raised.
    """
    return examined(Subject(model, x, y, threat), deep=deep)


def examined(subject: Subject, *, deep: bool = False) -> tuple[Finding, ...]:
    """Examine a network as `examine` does; what the passes were worth stays with the subject."""
    findings: dict[str, Finding] = {}
    with subject.at_rest():
        for name, check in _checks(deep).items():
            if not _is_ready(check, findings):
                continue
            try:
                finding = check.run(subject)
            except Exception as err:  # of any kind: it is the network's
                lines = str(err).splitlines() or [""]
                finding = Finding(name, "fail", 1.0, f"the network raised {type(err).__name__}: {lines[0]}")
            if finding is not None:
                findings[name] = finding
    return tuple(findings.values())


def left_out(findings: Sequence[Finding], *, deep: bool = False) -> tuple[str, ...]:
    """Return the checks that an examination left out, because one that they need did not pass."""
    found = {finding.check: finding for finding in findings}
    return tuple(name for name, check in _checks(deep).items() if not _is_ready(check, found))


def review(record: EvaluationRecord) -> tuple[Finding, ...]:
    """Review an evaluation from its record's facts alone: no network, no image.

    Returns:
        A finding per check that the record has the attacks for; none of a record without samples.
    """
    findings = [check(record) for check in REVIEW.values()] if len(record) else []
    return tuple(finding for finding in findings if finding is not None)


def _checks(deep: bool) -> Mapping[str, Check]:
    return {**EXAMINATION, **DEEP} if deep else EXAMINATION


def _is_ready(check: Check, found: Mapping[str, Finding]) -> bool:
    return all(need in found and found[need].verdict == "pass" for need in check.needs)

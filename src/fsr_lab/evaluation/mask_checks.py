"""What masks inside a network do to gradients and statistics; known by the keys and routes that it declares."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from fsr_lab.attack.along_route import AlongRoute
from fsr_lab.core.crafting import crafting
from fsr_lab.core.losses import margin
from fsr_lab.core.record import Finding
from fsr_lab.core.route import Route
from fsr_lab.evaluation.subject import Subject

BEYOND = (0.5, 1.0, 2.0)
"""Sizes of a score, of which the share of units beyond is told."""
FLAT = 1e-3
"""A unit is flat where its mask has less than this of the largest slope that a sigmoid has, 4 m (1 - m): at the
temperature 0.1, from a score of 0.83 on."""
MANY_FLAT = 0.5
"""Share of flat units above which most of a mask has no gradient."""
PATH = 0.01
"""Share of the gradient through the masks below which an attack does not see them."""
ALIKE = 0.9
"""Cosine of two gradients below which they lead elsewhere: 26 degrees."""
REVIVED = 1.0
"""Temperature that gives saturated masks their slope back."""
NOISE_GAPS = (0.1, 0.25)
"""Gaps of accuracies that tell two networks apart, on clean images and on PGD's. These lie just across the deployed
network's boundary, where noise undoes a tenth of them on networks without a fault."""
DRAWS = 8
SHIFT = 0.5
"""Mean distance of two statistics, in standard deviations; of 64 images chance makes 0.1."""


def mask_saturation(subject: Subject) -> Finding | None:
    """Check that most units of the masks that are computed from scores have a slope."""
    if not _defenses(subject):
        return None
    with torch.no_grad():
        aux = subject.model.forward_with_aux(subject.x).aux  # type: ignore[attr-defined]
    masks = {point: (named["score"], named["mask"]) for point, named in aux.items() if {"score", "mask"} <= set(named)}
    if not masks:
        return None
    flat = {point: _share(4 * mask * (1 - mask) < FLAT) for point, (_, mask) in masks.items()}
    worst = max(flat, key=flat.__getitem__)
    score, mask = masks[worst]
    beyond = ", ".join(f"{_share(score.abs() > size):.0%} beyond {size:g}" for size in BEYOND)
    said = f"at {worst} {flat[worst]:.1%} of the units are flat (scores: {beyond}; mean mask {float(mask.mean()):.2f})"
    if flat[worst] > MANY_FLAT:
        text = f"{said}: gradients go round the mask; attack it with another slope (backward temperature)"
        return Finding("mask-saturation", "warn", flat[worst], text)
    return Finding("mask-saturation", "pass", flat[worst], said)


def mask_gradient(subject: Subject) -> Finding | None:
    """Check that the gradient sees the masks, or that their slope, given back, would not change its direction.

    Of the margin, whose gradient stays where the network is sure of itself and that of cross-entropy vanishes.
    """
    routes = Route(mask_gradient="stop"), Route(backward_tau=REVIVED)
    views = [AlongRoute(route=route) for route in routes]
    if any(view.lacks(subject.model, subject.x) for view in views):
        return None
    exact = subject.input_gradient(margin).double()
    rows = exact.norm(dim=1) > 0
    if not rows.any():
        return None
    round_masks, revived = (subject.input_gradient(margin, view(subject.model)).double()[rows] for view in views)
    exact = exact[rows]
    share = float(((exact - round_masks).norm(dim=1) / exact.norm(dim=1)).mean())
    cosine = float(cosine_similarity(exact, revived).mean())
    said = f"{share:.2%} of the gradient goes through the masks; at temperature {REVIVED:g} it has cosine {cosine:.2f}"
    if share < PATH and cosine < ALIKE:
        text = f"{said}: attacks do not see the masks, and would go elsewhere if they did"
        return Finding("mask-gradient", "warn", share, text)
    return Finding("mask-gradient", "pass", share, said)


def training_noise(subject: Subject) -> Finding | None:
    """Check that the network is as accurate with the noise that it is trained with as it is without, when deployed."""
    if not any(_is_noisy(module) for module in subject.modules):
        return None
    deployed = {"clean images": subject.clean, "PGD's images": subject.climb[max(subject.climb)]}
    with crafting(subject.model, noise=True):
        noisy = [_mean_accuracy(subject, images) for images in (subject.x, subject.adversarial)]
    gaps = [with_noise - without for with_noise, without in zip(noisy, deployed.values(), strict=True)]
    gap, limit = max(zip(gaps, NOISE_GAPS, strict=True), key=lambda pair: abs(pair[0]) / pair[1])
    said = "; ".join(
        f"accuracy on {kind} {without:.1%} deployed, {with_noise:.1%} with the training noise"
        for (kind, without), with_noise in zip(deployed.items(), noisy, strict=True)
    )
    if abs(gap) > max(limit, 1 / len(subject.x)):
        text = f"{said}: the network deployed is not the one that was trained; attack both"
        return Finding("training-noise", "warn", gap, text)
    return Finding("training-noise", "pass", gap, said)


def mask_statistics(subject: Subject) -> Finding | None:
    """Check that BatchNorms in noisy defences have the means that the masks as deployed give.

    Clean and PGD's images are looked at, and the nearer of the two counts: training has seen the one or the other.
    """
    norms = {
        f"{point}/{name}": part
        for point, defense in _defenses(subject).items()
        if _is_noisy(defense)
        for name, part in defense.named_modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.track_running_stats
    }
    if not norms:
        return None
    shifts = [_shifts(subject, images, norms) for images in (subject.x, subject.adversarial)]
    nets = dict.fromkeys(name.rpartition(".")[0] or name for name in norms)
    nearer = {net: min((shift[net] for shift in shifts), key=lambda values: float(values.mean())) for net in nets}
    worst = max(nearer, key=lambda net: float(nearer[net].mean()))
    mean = float(nearer[worst].mean())
    each = ", ".join(f"{net} {float(v.mean()):.2f} (at most {float(v.max()):.2f})" for net, v in nearer.items())
    said = f"BatchNorm means are off by, in standard deviations: {each}"
    if mean > SHIFT:
        text = f"{said}: they are of other masks or images; estimate them anew (recalibrate)"
        return Finding("mask-statistics", "warn", mean, text)
    return Finding("mask-statistics", "pass", mean, said)


def _defenses(subject: Subject) -> Mapping[str, nn.Module]:
    found: Mapping[str, nn.Module] = getattr(subject.model, "defenses", {})
    return found


def _is_noisy(module: nn.Module) -> bool:
    return bool(getattr(module, "training_noise", False))


def _share(where: Tensor) -> float:
    return float(where.float().mean())


def _mean_accuracy(subject: Subject, images: Tensor) -> float:
    return sum(subject.accuracy(images) for _ in range(DRAWS)) / DRAWS


def _shifts(subject: Subject, images: Tensor, norms: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return, for each net, how far its BatchNorms' inputs are from their running means, a value a channel."""
    found: dict[str, list[Tensor]] = {}
    with _watching(norms, found):
        subject.forward(images)
    return {net: torch.cat(values) for net, values in found.items()}


@contextmanager
def _watching(norms: Mapping[str, nn.Module], into: dict[str, list[Tensor]]) -> Iterator[None]:
    def note(net: str, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        features = inputs[0].double()
        means = features.mean([axis for axis in range(features.ndim) if axis != 1])
        mean, variance = (norm.get_buffer(name).double() for name in ("running_mean", "running_var"))
        into.setdefault(net, []).append((means - mean).abs() / (variance + norm.eps).sqrt())  # type: ignore[operator]

    hooks = [
        norm.register_forward_pre_hook(partial(note, name.rpartition(".")[0] or name)) for name, norm in norms.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()

"""The shortest way from a point of the box [0, 1] to a hyperplane without leaving the box, in L-infinity and L2."""

import torch
from torch import Tensor

from fsr_lab.core.threat import Norm


def onto_hyperplane(points: Tensor, normal: Tensor, excess: Tensor, norm: Norm) -> Tensor:
    """Return the displacement of least norm that takes each point onto its hyperplane within [0, 1].

    Where the box does not reach the hyperplane, the displacement goes as near to it as the box allows. Coordinates
    of zero weight stay.

    Both norms are one problem. Every coordinate moves towards the plane at a speed (1 for L-infinity, |w| for L2)
    until a common time, or until it meets the box; the time is where the sum of |w| times the moves equals |excess|.
    That sum is concave and piecewise linear in time, so Newton's method from 0 climbs to the root, each step passing
    at least one corner, and ends there exactly: in two to five steps for images, with no sorting.

    Source: Croce and Hein, 2020 (FAB, arXiv:1907.02044), Sec. 2.2, where it is solved by sorting. Deviation: in L2
    their released code holds weights below 1e-8 for zero; here all count, and the scale of `normal` has no effect.

    Args:
        points: (..., D) in [0, 1].
        normal: (..., D) weights w of the hyperplanes; broadcasts against `points`.
        excess: (...) signed w . x - b at the points.
        norm: what the displacement is small in.
    """
    tiny, huge = torch.finfo(points.dtype).tiny, torch.finfo(points.dtype).max
    weight = normal.abs()
    distance = excess.abs()
    if norm == "l2":  # squares of faint weights would vanish
        scale = weight.amax(-1, keepdim=True).clamp_min(tiny)
        weight = weight / scale
        distance = distance / scale.squeeze(-1)
    direction = normal.sign() * torch.where(excess < 0, 1, -1)[..., None]
    room = torch.where(direction > 0, 1 - points, points)
    slope, corner = (weight, room) if norm == "linf" else (weight * weight, room / weight)
    time = _reached(slope, corner, weight * room, distance).clamp_max(huge)[..., None]
    moved = time if norm == "linf" else time * weight
    return direction * torch.minimum(moved, room)


def _reached(slope: Tensor, corner: Tensor, cap: Tensor, distance: Tensor) -> Tensor:
    """Return the least t with sum_i min(slope_i t, cap_i) >= distance, (...); past every corner if there is none.

    Args:
        slope: (..., D), at least 0.
        corner: (..., D) cap / slope; not read where the slope is 0.
        cap: (..., D), at least 0.
        distance: (...), at least 0.
    """
    time = distance / slope.sum(-1).clamp_min(torch.finfo(slope.dtype).tiny)
    while True:
        moving = time[..., None] < corner
        speed = torch.where(moving, slope, 0).sum(-1)
        rest = distance - torch.where(moving, 0, cap).sum(-1)
        later = torch.where(speed > 0, rest / speed, time)
        # not `!=`: rounding may put a root that is already reached a little earlier, for ever
        if not (later > time).any():
            return time
        time = torch.maximum(time, later)

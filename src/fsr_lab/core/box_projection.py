"""Projection of points onto hyperplanes, within the box [0, 1]."""

import torch
from torch import Tensor

from fsr_lab.core.threat import Norm


def move_onto_plane(points: Tensor, normal: Tensor, excess: Tensor, norm: Norm) -> Tensor:
    """Return each point's smallest move, in the norm, onto its plane w.x = b without leaving [0, 1].

    Coordinate i moves against sign(w.x - b) w_i, by min(lam s_i, room_i): room_i is what the box leaves it, and its
    speed s_i is 1 for linf and proportional to |w_i| for l2. lam solves sum |w_i| min(lam s_i, room_i) = |w.x - b|.
    The left side is concave and piecewise linear in lam: Newton's method from 0 never passes the root and ends on it
    exactly. It needs one round for each time that coordinates meet the box, which is a handful, and sorts nothing.
    From a plane that misses the box the move goes as far as the box allows; a coordinate whose w_i is 0 stays.

    Source: FAB (Croce and Hein, 2020, arXiv:1907.02044), section 2.2. Differs from the released code, which sorts,
    and in l2 takes weights below 1e-8 for 0.

    Args:
        points: (..., D) in [0, 1].
        normal: (..., D), w, broadcast over the points.
        excess: (...) w.x - b at each point, and not b: the difference of two long sums would lose its digits.
        norm: "linf" or "l2".

    Returns:
        (..., D), to be added to the points.
    """
    largest = normal.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(normal.dtype).tiny)
    scaled, distance = normal / largest, excess.abs() / largest.squeeze(-1)
    weight = scaled.abs()
    speed = torch.ones_like(weight) if norm == "linf" else weight
    direction = -scaled.sign() * excess.sign()[..., None]
    room = (direction.clamp_min(0) - points).abs()
    rate, reach, limit = weight * speed, weight * room, room / speed
    # numbers, 0 or 1: on a CPU, comparing into bools and selecting by them takes several times as long as a product
    stopped = torch.eq(weight, 0, out=torch.empty_like(weight)).expand_as(room)
    while True:
        # rounding must not turn round those that still move
        left = (distance - (reach * stopped).sum(-1)).clamp_min(0)
        slope = (rate - rate * stopped).sum(-1)
        lam = torch.where(slope > 0, left / slope, torch.inf)[..., None]
        now = torch.maximum(stopped, torch.le(limit, lam, out=torch.empty_like(limit)))
        if torch.equal(now, stopped):
            return direction * torch.where(stopped.bool(), room, lam * speed)
        stopped = now

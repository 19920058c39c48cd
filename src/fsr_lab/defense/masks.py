"""The masks that a Separation Net learns: Eq. 2 of FSR, and what its ablations put in the place of Eq. 2.

A rule maps a score r, in float32 or float64 and of any shape, and a temperature to a mask of that shape in [0, 1].
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from fsr_lab.core.route import MaskRule, Route, mask_by, tempered, with_gradient_of

LearntMask = Literal["gumbel", "gumbel_literal", "sigmoid", "tempered", "hard_st", "gumbel_st"]
EvalMask = Literal["own", "tempered", "sigmoid", "hard", "mc"]
Granularity = Literal["unit", "channel", "spatial"]

FLOOR = 1e-8
"""What the released code adds inside every logarithm of Eq. 2, and to the temperature."""


def drawn(mask: str, like: Tensor) -> Tensor:
    """Draw the noise of a mask that has some, in the shape and type of a score.

    Two Gumbel draws, stacked in front, for the literal form of Eq. 2; one logistic draw for the others.
    """
    if mask == "gumbel_literal":
        return torch.stack([_gumbel(uniform(like)) for _ in range(2)])
    return logistic_noise(like)


def learnt_mask(mask: str, score: Tensor, noise: Tensor | None, tau: float, route: Route, *, samples: int) -> Tensor:
    """Return the mask of a score.

    Args:
        mask: one of `LearntMask`, or, without noise, of `EvalMask` but "own".
        score: r, in float32 or float64, of any shape.
        noise: what `drawn` gave for it.
        tau: the module's temperature.
        route: see `mask_by`. Its `backward_tau` leaves the literal form's noise out of the derivative.
        samples: K of "mc".
    """
    rule = partial(mean_over_noise, samples=samples) if mask == "mc" else _RULES[mask]
    if noise is not None and mask == "gumbel_literal":
        rule = partial(literal, gumbels=noise)
    elif noise is not None:
        score = score + noise
    return mask_by(route, score, tau, rule)


def has_temperature(mask: str) -> bool:
    """Tell whether a mask's values depend on the temperature."""
    return mask not in ("sigmoid", "hard", "hard_st", "gumbel_st")


def pooled(score: Tensor, granularity: str) -> Tensor:
    """Return the score per unit (N, C, H, W), or its mean per channel (N, C, 1, 1) or per position (N, 1, H, W)."""
    if granularity == "channel":
        return score.mean((2, 3), keepdim=True)
    return score.mean(1, keepdim=True) if granularity == "spatial" else score


def plain(score: Tensor, tau: float) -> Tensor:
    """Return sigmoid(r): the probability that Eq. 2 hardens, at no temperature."""
    return torch.sigmoid(score)


def hard(score: Tensor, tau: float) -> Tensor:
    """Return 1[r > 0] with the derivative of sigmoid(r / tau): straight through, so that no attack is blinded."""
    return with_gradient_of(tempered(score, tau), (score > 0).to(score))


def literal(score: Tensor, tau: float, *, gumbels: Tensor | None = None) -> Tensor:
    """Return Eq. 2 as the released code computes it: a softmax over two floored log-probabilities.

    Args:
        score: r.
        tau: temperature.
        gumbels: (2, ...) draws; None is u = 1/2 for both, as at evaluation.
    """
    robust = torch.sigmoid(score)
    if gumbels is None:
        gumbels = _gumbel(torch.full_like(score, 0.5)).expand(2, *score.shape)
    logits = torch.stack([(robust + FLOOR).log(), (1 - robust + FLOOR).log()]) + gumbels
    return (logits / (tau + FLOOR)).softmax(0)[0]


def mean_over_noise(score: Tensor, tau: float, *, samples: int) -> Tensor:
    """Return the mean of sigmoid((r + g) / tau) over K values of the logistic noise g.

    Its quantiles at (k - 1/2) / K, the same for every unit: a stratified sample of the mean mask that needs no draw,
    so that an evaluation stays deterministic, at every height and width.
    """
    levels = ((k + 0.5) / samples for k in range(samples))
    return torch.stack([tempered(score + math.log(level / (1 - level)), tau) for level in levels]).mean(0)


def uniform(like: Tensor) -> Tensor:
    """Draw from [0, 1) in a tensor's shape and type, in one order whatever its strides.

    Otherwise channels-last weights would change the draws.
    """
    return torch.rand_like(like, memory_format=torch.contiguous_format)


def logistic_noise(like: Tensor) -> Tensor:
    """Draw Logistic(0, 1), the difference of two Gumbel draws, in a tensor's shape and type.

    The uniform draw keeps one rounding step away from 0 and 1, where the logit is infinite.
    """
    return uniform(like).logit(eps=torch.finfo(like.dtype).eps)


def _gumbel(uniform: Tensor) -> Tensor:
    return -(-(uniform + FLOOR).log() + FLOOR).log()


_RULES: Mapping[str, MaskRule] = {
    "gumbel": tempered,
    "gumbel_literal": literal,
    "sigmoid": plain,
    "tempered": tempered,
    "hard_st": hard,
    "hard": hard,
    "gumbel_st": hard,
}

"""Masks that nothing is learnt for: controls that stand in the place of FSR's Separation Net.

Each is a constant to the gradient, and returned in a shape that expands to that of the features.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from fsr_lab.defense.masks import pooled, uniform

UnlearntMask = Literal["random", "fixed_random", "magnitude", "inverse_magnitude", "attribution", "ones", "zeros"]


def unlearnt_mask(
    mask: str,
    features: Tensor,
    *,
    granularity: str,
    noise: Tensor | None,
    fixed: Tensor | None,
    head: nn.Module,
    y: Tensor | None,
) -> Tensor:
    """Return a mask by its name.

    Args:
        mask: one of `UnlearntMask`.
        features: (N, C, H, W) in float32 or float64, without gradient.
        granularity: what one entry of a random mask or a magnitude is of.
        noise: the draw of "random"; None is its mean, one half.
        fixed: (C, 1, 1), the mask of "fixed_random".
        head: the auxiliary head, which "attribution" asks.
        y: (N,) the labels that it asks for; None asks for its own predictions.
    """
    if mask == "random":
        return features.new_full((1,), 0.5) if noise is None else noise
    if mask == "fixed_random":
        assert fixed is not None
        return fixed.to(features)
    if mask == "attribution":
        return attribution(features, head, y)
    if mask in ("magnitude", "inverse_magnitude"):
        upper = upper_half(features, granularity)
        return upper if mask == "magnitude" else 1 - upper
    return features.new_full((1,), 1.0 if mask == "ones" else 0.0)


def coin_flips(like: Tensor) -> Tensor:
    """Draw Bernoulli(1/2), in a tensor's shape and type."""
    return (uniform(like) < 0.5).to(like)


def fixed_half(channels: int) -> Tensor:
    """Draw the half of the channels that "fixed_random" holds to be robust, the larger of an odd number: (C, 1, 1)."""
    return (torch.randperm(channels) < (channels + 1) // 2).float()[:, None, None]


def upper_half(features: Tensor, granularity: str) -> Tensor:
    """Return 1 where |f|, pooled, is above its median over the sample.

    The median is the lower one, so that half of an even number is above. Ties go below, where a ReLU's zeros belong.
    """
    size = pooled(features.abs(), granularity)
    ranked = size.flatten(1).sort(1).values  # not kthvalue, which has no deterministic form on a GPU
    median = ranked[:, (ranked.shape[1] - 1) // 2]
    return (size > median[:, None, None, None]).to(features)


def attribution(features: Tensor, head: nn.Module, y: Tensor | None) -> Tensor:
    """Return (N, C, 1, 1): 1 where raising the feature raises the auxiliary logit of y, da_y / df > 0.

    In closed form, as the head sees spatial means: the sign of W_y, or of W2_y [W1 g + b1 > 0] W1 with a hidden layer.
    """
    first, last = (head[0], head[-1]) if isinstance(head, nn.Sequential) else (None, head)
    assert isinstance(last, nn.Linear)
    with torch.autocast(features.device.type, enabled=False):
        means = features.mean((2, 3))
        slope = last.weight[head(means).argmax(1) if y is None else y]
        if isinstance(first, nn.Linear):
            slope = (slope * (first(means) > 0)) @ first.weight
    return (slope > 0).to(features)[:, :, None, None]

"""Stochastic Activation Pruning (Dhillon et al., ICLR 2018, arXiv:1803.01442)."""

from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from fsr_lab.core.defense import FeatureDefense
from fsr_lab.core.precision import full_precision
from fsr_lab.core.route import Route, with_gradient_of
from fsr_lab.core.suggest import unknown
from fsr_lab.core.types import DefenseOutput, FeatureShape

Noise = Literal["eval", "always"]


class SAP(FeatureDefense):
    """Drops activations at random, small ones more often, and scales the others up so that the mean stays.

    With P_i = |a_i| / sum_j |a_j| over a sample, activation i is kept with probability q_i = 1 - exp(-n P_i) and
    then divided by q_i + 1e-8. Random at test time by definition, crafting included; put on a trained network
    after the fact, so that training is without it unless asked otherwise. No labels, no loss, no auxiliary tensors.

    The draw and q are constants to autograd: the expected derivative then is that of the expected output, which is
    the identity wherever an activation is not zero. A gradient averaged over draws is that of an attack on the mean;
    a single draw's is mostly noise.

    Routes: "straight_through" takes every draw for the identity in the backward pass: the expected derivative, at once.

    Deviation: the paper draws n times with replacement, which keeps i with probability 1 - (1 - P_i)^n; the
    exponential is its limit for small P_i, with one independent draw for each activation.

    Args:
        shape: of the feature; not used.
        num_classes: not used.
        draws: n as a multiple of C H W.
        noise: "eval" prunes in eval mode only, "always" in training too.

    Raises:
        ValueError: draws that are not positive, an unknown noise.
    """

    eval_noise: ClassVar[bool] = True
    routes: ClassVar[frozenset[str]] = frozenset({"f_tilde", "straight_through"})

    def __init__(self, shape: FeatureShape, num_classes: int, *, draws: float = 2.0, noise: Noise = "eval") -> None:
        super().__init__()
        if not draws > 0:
            raise ValueError(f"expected draws above 0, got {draws}")
        if noise not in get_args(Noise):
            raise ValueError(unknown("SAP noise", noise, get_args(Noise)))
        self.draws = draws
        self.noise = noise
        # declared per instance here: what the option leaves of the class's word
        self.training_noise = noise == "always"  # type: ignore[misc]

    def forward(
        self,
        features: Tensor,
        targets: Tensor | None = None,
        *,
        route: Route | None = None,
        want_aux: bool = True,
    ) -> DefenseOutput:
        """Prune (N, C, H, W) features; see `FeatureDefense.forward`. Labels are not used."""
        if self.training and self.noise == "eval":
            return DefenseOutput(features, {})
        probability = self.keep_probability(features)
        # in one order whatever the strides: a channels-last policy must not change the draws
        kept = torch.rand_like(probability, memory_format=torch.contiguous_format) < probability
        pruned = (features * (kept / (probability + 1e-8))).to(features.dtype)
        if route is not None and route.mask_gradient == "straight_through":
            pruned = with_gradient_of(features, pruned)
        return DefenseOutput(pruned, {})

    def keep_probability(self, features: Tensor) -> Tensor:
        """Return q, (N, C, H, W) in [0, 1], detached, in float32 at least; zero activations are never kept."""
        size = features.detach().abs()
        size = full_precision(size)
        # an all-zero sample has no shares: whatever is divided by, they are zero
        share = size / size.sum((1, 2, 3), keepdim=True).clamp_min(torch.finfo(size.dtype).tiny)
        return -torch.expm1(-self.draws * size.shape[1:].numel() * share)

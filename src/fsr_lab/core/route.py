"""How a defence is re-routed for one call: by analyses that swap features, and by adaptive attacks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from fsr_lab.core.suggest import unknown

Part = Literal["f", "f_plus", "f_minus", "f_tilde_minus", "f_tilde", "f_plus_r"]
MaskGradient = Literal["exact", "stop", "straight_through", "relu", "through"]
MaskRule = Callable[[Tensor, float], Tensor]
"""(score, temperature) -> a mask in [0, 1] of the score's shape."""


@dataclass(frozen=True, kw_only=True)
class Route:
    """Which part of a separated feature map goes on, and how its mask is computed; the default is as deployed.

    Backward passes are replaced after Athalye et al., 2018 (arXiv:1802.00420), Section 4.1 (BPDA): values stay, and
    an attack gets back the gradient that a saturated, constant or discontinuous mask hides. What each means for a
    defence is written in the defence's docstring; `routes` lists those that it knows.

    Attributes:
        part: the feature that replaces the tapped one; `f_plus_r` is f + R(f), recalibration without a mask. A
            defence that takes no feature apart knows `f_tilde`, what goes on as deployed.
        tau: temperature of the mask in the forward pass; None is the module's own. Of a mask that follows a
            prediction (CAS), of the softmax that takes the argmax's place.
        backward_tau: temperature of the mask's derivative alone (CAS and CIFS: likewise).
        mask_gradient: "exact" is the defence's own, "stop" treats the mask as a constant, "straight_through" takes
            dm/dr = 1, or the whole defence for the identity where no score makes its mask (kWTA, SAP), "relu" takes
            the defence for a ReLU, "through" lets the gradient pass a mask that the defence detaches (CIFS).
        mask: (N, C, H, W) or broadcastable, in [0, 1], used instead of a computed mask.
        rescaled: give the part that goes on, sample by sample, the Euclidean norm of the feature that came in, so that
            what a part lacks is not its size.

    Raises:
        ValueError: an unknown part or gradient rule, a temperature that is not positive, or two rules for one mask.
    """

    part: Part = "f_tilde"
    tau: float | None = None
    backward_tau: float | None = None
    mask_gradient: MaskGradient = "exact"
    mask: Tensor | None = None
    rescaled: bool = False

    def __post_init__(self) -> None:
        for kind, value, known in (
            ("part", self.part, get_args(Part)),
            ("mask gradient", self.mask_gradient, get_args(MaskGradient)),
        ):
            if value not in known:
                raise ValueError(unknown(kind, value, known))
        for name in ("tau", "backward_tau"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"expected {name} above 0, got {value}")
        if len(self.uses & {*get_args(MaskGradient), "backward_tau", "mask"}) > 1:
            raise ValueError("a route takes one of backward_tau, mask_gradient and mask: they exclude each other")

    @property
    def keeps_values(self) -> bool:
        """Whether a defence's values stay as deployed, bit for bit, so that gradients alone differ."""
        return self.part == "f_tilde" and self.tau is None and self.mask is None and not self.rescaled

    @property
    def uses(self) -> frozenset[str]:
        """What a defence must support to follow this route; compared with its `routes`."""
        rules = {name for name in ("tau", "backward_tau", "mask") if getattr(self, name) is not None}
        if self.rescaled:
            rules.add("rescaled")
        if self.mask_gradient != "exact":
            rules.add(self.mask_gradient)
        return frozenset(rules | {self.part})


def with_gradient_of(stand_in: Tensor, value: Tensor) -> Tensor:
    """Return a value as it is, which to autograd is its stand-in, a finite tensor of the same shape (BPDA)."""
    return value.detach() + (stand_in - stand_in.detach())  # bracketed: the difference is exactly nought


def with_norm_of(features: Tensor, part: Tensor) -> Tensor:
    """Return a part (N, C, H, W), each sample scaled to the Euclidean norm of the features; nothing stays nothing."""
    wanted, own = (full.float().flatten(1).norm(dim=1)[:, None, None, None] for full in (features, part))
    scaled: Tensor = part * (wanted / own.clamp_min(1e-30))  # less would be infinite, and nothing times it no number
    return scaled


def tempered(score: Tensor, tau: float) -> Tensor:
    """Return sigmoid(score / tau): the mask as deployed."""
    return torch.sigmoid(score / tau)


def mask_by(route: Route, score: Tensor, tau: float, rule: MaskRule = tempered) -> Tensor:
    """Return the mask in [0, 1] of a score (any shape, noise already added) under a route's rule, in its type.

    Args:
        route: whose temperatures and gradient apply. Its `mask` is for the defence to put in this one's place.
        score: r.
        tau: the module's own temperature.
        rule: the module's own mask.
    """
    mask = rule(score, route.tau or tau)
    if route.mask_gradient == "stop":
        return mask.detach()
    if route.mask_gradient == "straight_through":
        return with_gradient_of(score, mask)
    if route.backward_tau is not None:
        return with_gradient_of(tempered(score, route.backward_tau), mask)
    return mask

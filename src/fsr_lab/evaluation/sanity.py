"""Checks without which a robustness number is not one."""

import torch
from torch import Tensor

from fsr_lab.core.threat import Threat

NORM_SLACK = 1e-6
"""What float32 rounding may add to a perturbation of exactly eps."""


def check_images(x: Tensor) -> None:
    """Refuse images that are not (N, C, H, W) in [0, 1].

    Raises:
        ValueError: wrong rank, NaN, or values outside [0, 1].
    """
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f"expected float images (N, C, H, W), got {tuple(x.shape)} of {x.dtype}")
    if not x.isfinite().all():
        raise ValueError("expected finite images, got NaN or infinity; look at the data's conversion")
    low, high = float(x.min()), float(x.max())
    if low < 0 or high > 1:
        raise ValueError(
            f"expected images in [0, 1], got values in [{low:.4g}, {high:.4g}]; "
            "normalise inside the model, not in the data"
        )


def check_threat(threat: Threat) -> None:
    """Refuse an eps at which there is nothing to evaluate.

    Raises:
        ValueError: eps is 0, or spans more than the pixel range.
    """
    if threat.eps == 0:
        raise ValueError("eps is 0, and attacks have no room; give threat.eps above 0 (clean accuracy comes anyway)")
    if threat.norm == "linf" and threat.eps > 1:
        raise ValueError(
            f"eps {threat.eps:g} is wider than the pixel range [0, 1]; give it on that scale, such as threat.eps=8/255"
        )


def check_labels(y: Tensor, num_classes: int) -> None:
    """Refuse labels that are not int64 in [0, K).

    Raises:
        ValueError: as above.
    """
    if y.dtype != torch.int64 or y.ndim != 1:
        raise ValueError(f"expected int64 labels (N,), got {tuple(y.shape)} of {y.dtype}")
    if len(y) and (int(y.min()) < 0 or int(y.max()) >= num_classes):
        raise ValueError(
            f"expected labels in [0, {num_classes}), got {int(y.min())} to {int(y.max())}; "
            "the network has too few outputs, or the labels are of another data set"
        )


def check_logits(logits: object, count: int) -> Tensor:
    """Return the logits, or refuse what is not one finite tensor (N, K).

    Raises:
        TypeError: the model returned something else, such as a tuple.
        ValueError: wrong shape, or NaN or infinity.
    """
    if not isinstance(logits, Tensor):
        kind = type(logits).__name__
        raise TypeError(f"expected the model to return logits, got {kind}; wrap it to return one tensor")
    if logits.ndim != 2 or len(logits) != count:
        raise ValueError(f"expected logits of shape ({count}, K), got {tuple(logits.shape)}")
    if not logits.isfinite().all():
        raise ValueError("the model gives NaN or infinite logits; its weights or its arithmetic are broken")
    return logits


def check_adversarial(name: str, x_adv: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """Return each perturbation's size by our own measurement, or refuse images outside the threat set.

    Raises:
        ValueError: a NaN, a value outside [0, 1], or a perturbation larger than eps.
    """
    if x_adv.shape != x.shape:
        raise ValueError(f"attack {name!r} gave images {tuple(x_adv.shape)} for {tuple(x.shape)}")
    try:
        check_images(x_adv)
    except ValueError as err:
        raise ValueError(f"attack {name!r} gave no images: {err}") from err
    norm = threat.measure(x_adv, x)
    if float(norm.max()) > threat.eps + NORM_SLACK:
        raise ValueError(
            f"attack {name!r} left the threat set: {threat.norm} perturbation {float(norm.max()):.6f} "
            f"at eps {threat.eps:.6f}; give the attack this evaluation's threat"
        )
    return norm

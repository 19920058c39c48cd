"""What a network must be before anybody attacks it: a fixed function from each image alone to its logits."""

import torch
from torch import Tensor

from fsr_lab.core.record import Finding
from fsr_lab.evaluation import sanity
from fsr_lab.evaluation.subject import Subject

PROBABLE = 1e-3
"""How far from one the sum of probabilities may lie: reduced precision rounds to about that."""
ROUNDING = 1e-3
"""Difference of two logits, relative to the largest, that the order of a sum may make in float32: deep networks stay
below 1e-5, and a layer that looks at the company or draws noise is above 1e-2."""
ALONE = 4
"""How many images are passed alone."""


def images(subject: Subject) -> Finding:
    """Check that images are float (N, C, H, W) in [0, 1]."""
    x = subject.x
    outside = float(1 - ((x >= 0) & (x <= 1)).float().mean()) if x.numel() else 1.0
    try:
        sanity.check_images(x)
        if not len(x):
            raise ValueError("expected at least one image, got none")
    except ValueError as err:
        return Finding("images", "fail", outside, f"{outside:.1%} of the values lie outside [0, 1]: {err}")
    low, high = float(x.min()), float(x.max())
    return Finding("images", "pass", outside, f"no value lies outside [0, 1]; they span [{low:.3g}, {high:.3g}]")


def train_mode(subject: Subject) -> Finding | None:
    """Check that no layer was in training mode."""
    count, layers = subject.in_training, len(subject.layers)
    if not layers:
        return None
    if count:
        text = f"{count} of {layers} layers were in training mode; what is measured here is eval mode"
        return Finding("train-mode", "warn", count, text)
    return Finding("train-mode", "pass", 0, f"none of {layers} layers is in training mode")


def one_tensor(subject: Subject) -> Finding:
    """Check that the output is one float tensor (N, K), K at least 2."""
    output = subject.output
    if not isinstance(output, Tensor):
        count = len(output) if isinstance(output, (tuple, list, dict)) else 0
        text = f"the network returns {type(output).__name__}, not one tensor; wrap it to return its logits"
        return Finding("one-tensor", "fail", count, text)
    shape, wanted = tuple(output.shape), f"({len(subject.x)}, K)"
    if output.ndim != 2 or len(output) != len(subject.x) or shape[1] < 2 or not output.is_floating_point():
        text = f"expected float logits of shape {wanted} with K of at least 2, got {shape} of {output.dtype}"
        return Finding("one-tensor", "fail", output.ndim, text)
    return Finding("one-tensor", "pass", 1, f"the network returns one tensor {shape}")


def finite(subject: Subject) -> Finding:
    """Check that no logit is NaN or infinite."""
    share = float((~subject.logits.isfinite()).any(1).float().mean())
    text = f"{share:.1%} of the images have NaN or infinite logits"
    return Finding("finite", "fail" if share else "pass", share, text)


def labels(subject: Subject) -> Finding:
    """Check that labels are int64 (N,) in [0, K)."""
    y, classes = subject.y, subject.logits.shape[1]
    outside = float(((y < 0) | (y >= classes)).float().mean()) if y.numel() else 1.0
    try:
        sanity.check_labels(y, classes)
        if len(y) != len(subject.x):
            raise ValueError(f"expected a label for each of {len(subject.x)} images, got {len(y)}")
    except ValueError as err:
        return Finding("labels", "fail", outside, f"{outside:.1%} of the labels are no class of the network: {err}")
    return Finding("labels", "pass", outside, f"every label is one of the network's {classes} classes")


def logits(subject: Subject) -> Finding:
    """Check that rows are not probabilities: not all within [0, 1] with a sum of one."""
    rows = subject.logits
    within = (rows >= 0).all(1) & (rows <= 1).all(1)
    share = float((within & ((rows.sum(1) - 1).abs() < PROBABLE)).float().mean())
    # a single row of logits may look so by chance; most of them do not
    if share > 0.5:
        text = f"{share:.0%} of the outputs are probabilities; take the softmax out of the network"
        return Finding("logits", "fail", share, text)
    return Finding("logits", "pass", share, f"{share:.0%} of the outputs look like probabilities")


def deterministic(subject: Subject) -> Finding:
    """Check that two forwards of the same images give the same bits."""
    again = subject.forward(subject.x)
    if torch.equal(again, subject.logits):
        return Finding("deterministic", "pass", 0.0, "two forwards of the same images are equal bit by bit")
    size = _difference(again, subject.logits)
    said = f"two forwards of the same images differ by {size:.1e} of the largest logit"
    if size <= ROUNDING:
        return Finding("deterministic", "pass", size, f"{said}: rounding")
    if subject.draws_noise:
        text = f"{said}, as the network declares (eval_noise); attack it by expectation over transformations"
        return Finding("deterministic", "warn", size, text)
    text = f"{said}: a layer draws random numbers in eval mode; remove it or let it declare eval_noise"
    return Finding("deterministic", "fail", size, text)


def batch_independent(subject: Subject) -> Finding:
    """Check that images passed alone have the logits that they have in company."""
    alone = torch.cat([subject.forward(image[None]) for image in subject.x[:ALONE]])
    size = _difference(alone, subject.logits[:ALONE])
    said = f"logits of an image alone and in company differ by {size:.1e} of the largest"
    if size <= ROUNDING:
        return Finding("batch-independent", "pass", size, f"{said}: rounding")
    text = f"{said}: a layer computes over the batch, such as a BatchNorm in training mode"
    return Finding("batch-independent", "fail", size, text)


def buffers(subject: Subject) -> Finding | None:
    """Check that forwards in eval mode leave every buffer as it was."""
    if not subject.layers:
        return None
    changed = subject.changed_buffers()
    if changed:
        names = ", ".join(dict.fromkeys(changed))
        text = f"{len(changed)} buffers changed by forwards in eval mode ({names}): every image changes the network"
        return Finding("buffers", "fail", len(changed), text)
    return Finding("buffers", "pass", 0, "forwards in eval mode change no buffer")


def _difference(one: Tensor, other: Tensor) -> float:
    """Return the largest difference, relative to the largest logit; a NaN differs by more than anything."""
    scale = other.double().abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    relative = (one.double() - other.double()).abs() / scale
    return float(relative.nan_to_num(nan=torch.finfo(torch.float32).max).max())

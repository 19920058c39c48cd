"""Pure per-sample maths on logits: what criteria minimise and attacks maximise.

Every function takes logits (N, K) and labels (N,) int64 and returns (N,) unless it says otherwise. All run in
float32 (or float64 if given): autocast never reaches them.
"""

import torch
from torch import Tensor
from torch.nn import functional

from fsr_lab.core.precision import full_precision


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return -log p_y."""
    return functional.cross_entropy(full_precision(logits), y, reduction="none")


def kl(target_logits: Tensor, logits: Tensor) -> Tensor:
    """Return KL(p || q) in nats, p from `target_logits`, q from `logits`; gradients flow through both.

    Source: TRADES (Zhang et al., 2019, arXiv:1901.08573), Eq. 5's regulariser.
    """
    log_p, log_q = full_precision(target_logits).log_softmax(1), full_precision(logits).log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Return z_y minus the largest other logit: positive exactly where the prediction is right."""
    logits = full_precision(logits)
    true = logits.gather(1, y[:, None]).squeeze(1)
    return true - _without(logits, y).amax(1)


def most_likely_wrong(logits: Tensor, y: Tensor) -> Tensor:
    """Return the most likely class that is not y, (N,) int64: y' of FSR, k* of MART."""
    return _without(logits.detach(), y).argmax(1)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Return the difference of logits ratio: -(z_y - max other) / (z_(1) - z_(3)), scale-free.

    Source: AutoAttack (Croce and Hein, 2020, arXiv:2003.01690), Eq. 6.

    Raises:
        ValueError: fewer than three classes.
    """
    ranked = _ranked(logits, 3, "dlr", cure="the loss Margin")
    return -margin(logits, y) / (ranked[:, 0] - ranked[:, 2] + 1e-12)


def targeted_margin(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Return z_y - z_t for the classes `target`, (N,) int64: negative where the target outranks the true class."""
    logits = full_precision(logits)
    return (logits.gather(1, y[:, None]) - logits.gather(1, target[:, None])).squeeze(1)


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Return -(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2); source: as `dlr`, Eq. 7.

    Raises:
        ValueError: fewer than four classes.
    """
    ranked = _ranked(logits, 4, "targeted dlr", cure="the loss TargetedMargin")
    return -targeted_margin(logits, y, target) / (ranked[:, 0] - (ranked[:, 2] + ranked[:, 3]) / 2 + 1e-12)


def boosted_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return -log p_y - log(1.0001 - max wrong p + 1e-12).

    Source: MART (Wang et al., 2020), Eq. 8; both constants are the released code's and bound the second term.
    """
    wrong = _without(full_precision(logits).softmax(1), y).amax(1)
    return cross_entropy(logits, y) - (1.0001 - wrong + 1e-12).log()


def _without(values: Tensor, y: Tensor) -> Tensor:
    """Return values with the true class out of reach of any maximum."""
    if values.shape[1] < 2:
        raise ValueError(f"expected at least 2 classes, to have a wrong one, got {values.shape[1]}")
    return values.masked_fill(functional.one_hot(y, values.shape[1]).bool(), -torch.inf)


def _ranked(logits: Tensor, count: int, name: str, *, cure: str) -> Tensor:
    if logits.shape[1] < count:
        raise ValueError(f"expected at least {count} classes for {name}, got {logits.shape[1]}; take {cure}")
    return full_precision(logits).topk(count, dim=1).values

"""What FSR's loss terms read, and which wrong class the non-robust features must tell.

A term is a function of the auxiliary logits' key and of the label: (N,) int64, or (N, K) probabilities.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from fsr_lab.core.losses import most_likely_wrong
from fsr_lab.core.types import Criterion, Forward

Wrong = Literal["final", "aux", "random", "least_likely", "uniform", "none"]
LossOn = Literal["adv", "clean", "both"]
Heads = Literal["own", "criterion"]

Term = Callable[[str, Tensor], Tensor]


def cross_entropy_term(forward: Forward, point: str) -> Term:
    """Return the batch mean of the cross-entropy on one forward's auxiliary logits: the paper's terms."""
    return lambda key, label: functional.cross_entropy(forward.aux[point][key], label)


def criterion_term(adv: Forward, clean: Forward | None, point: str, criterion: Criterion) -> Term:
    """Return the sum of the strategy's own terms on auxiliary logits, as CAS (arXiv:2103.08307) trains its probe.

    For f- the label is y' throughout: MART's weight is then one minus the final logits' probability of y', where for
    CAS, which has no such term, it is that of the true class.
    """

    def term(key: str, label: Tensor) -> Tensor:
        beside = None if clean is None else clean.aux[point][key]
        return torch.stack(list(criterion(adv.aux[point][key], beside, label).values())).sum()

    return term


def forwards_read(loss_on: str, adv: Forward, clean: Forward | None) -> list[Forward]:
    """Return the forwards that the terms are the mean of.

    Raises:
        ValueError: one of them is on clean images, and there is none.
    """
    if loss_on == "adv":
        return [adv]
    if clean is None:
        raise ValueError(f"FSR's loss_on={loss_on} reads clean images, and there are none; train with trades or mart")
    return [clean] if loss_on == "clean" else [adv, clean]


def wrong_class(wrong: str, logits: Tensor, aux_logits: Tensor, y: Tensor) -> Tensor:
    """Return y', (N,) int64, or (N, K) probabilities for "uniform".

    Args:
        wrong: see `FSR`; not "none".
        logits: (N, K) final ones.
        aux_logits: (N, K) of f+.
        y: (N,) labels.
    """
    if wrong == "uniform":
        return torch.full_like(aux_logits, 1 / aux_logits.shape[1], requires_grad=False)
    if wrong == "random":
        return (y + torch.randint_like(y, 1, logits.shape[1])) % logits.shape[1]
    if wrong == "aux":
        return most_likely_wrong(aux_logits, y)
    return most_likely_wrong(-logits if wrong == "least_likely" else logits, y)

"""Second-order statistics optimisation."""

import torch
from torch import Tensor

from fsr_lab.core.precision import full_precision
from fsr_lab.core.types import Crafted, Defended, Progress
from fsr_lab.strategy.base import Strategy


class S2O(Strategy):
    """Adds soft labels from the batch's second-order statistics to any strategy (Jin et al., 2022, arXiv:2203.06020).

    The base's classification term weighs 1 - 2 * weight, the rest of it stays, and weight * (KL(q || p(x)) +
    KL(q' || p(x'))) is added; q and q' are `soft_labels` of the clean and the adversarial logits, constants.

    Deviations: the paper speaks of the weights' statistics, the released code computes on logits, and so does this;
    the released code forwards both batches again for the regulariser (further BatchNorm updates), here the logits at
    hand are used. A defence's auxiliary logits are trained by the base's criterion alone.

    Args:
        base: the strategy that is regularised; it crafts.
        weight: None is the released code's: 0.05 over a base that sees adversarial images alone (AT), 0.15 over one
            that compares with clean ones (TRADES, MART).
        diagonal: share of the true class in a soft label; 0.02 for CIFAR-100 there.

    Raises:
        ValueError: a weight outside [0, 0.5] or a diagonal outside [0, 1].
    """

    needs_clean = True

    def __init__(self, *, base: Strategy, weight: float | None = None, diagonal: float = 0.2) -> None:
        if weight is None:
            weight = 0.15 if base.needs_clean else 0.05
        for name, value, upper in (("weight", weight, 0.5), ("diagonal", diagonal, 1.0)):
            if not 0 <= value <= upper:
                raise ValueError(f"expected S2O {name} in [0, {upper:g}], got {value}")
        self.build_on(base)
        self.weight = weight
        self.diagonal = diagonal

    def craft(self, model: Defended, x: Tensor, y: Tensor, progress: Progress) -> Crafted:
        """Craft as the base does."""
        assert self.base is not None
        return self.base.craft(model, x, y, progress)

    def criterion(self, adv: Tensor, clean: Tensor | None, y: Tensor) -> dict[str, Tensor]:
        """Return the base's terms and "s2o"."""
        assert clean is not None
        terms = super().criterion(adv, clean, y)
        terms[self.classification] = (1 - 2 * self.weight) * terms[self.classification]
        pulls = [_pull(soft_labels(logits, y, self.diagonal), logits) for logits in (clean, adv)]
        return terms | {"s2o": self.weight * (pulls[0] + pulls[1])}


def soft_labels(logits: Tensor, y: Tensor, diagonal: float = 0.2) -> Tensor:
    """Return (N, K) label distributions from a batch's second-order statistics, without gradient.

    A = |sum_b z_b z_b^T|; each row of max(A) - A without its diagonal is scaled to sum 1 - diagonal, and the diagonal
    put in: classes that go along least get most. A sample takes the row of its class. A row that is all equal keeps
    its diagonal alone (released code: 0/0).

    Args:
        logits: (N, K).
        y: (N,) int64.
        diagonal: share of the true class.
    """
    z = full_precision(logits.detach())
    together = (z.T @ z).abs()
    apart = together.amax(1, keepdim=True) - together
    own = torch.eye(len(apart), dtype=apart.dtype, device=apart.device)
    apart = apart * (1 - own)
    rows = (1 - diagonal) * apart / (apart.sum(1, keepdim=True) + 1e-12) + diagonal * own
    return rows[y]


def _pull(target: Tensor, logits: Tensor) -> Tensor:
    """Return the batch mean of KL(target || p)."""
    log_p = full_precision(logits).log_softmax(1)
    return (torch.xlogy(target, target) - target * log_p).sum(1).mean()

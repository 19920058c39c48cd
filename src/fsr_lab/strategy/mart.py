"""MART."""

from functools import partial

from torch import Tensor

from fsr_lab.core.losses import boosted_cross_entropy
from fsr_lab.core.precision import full_precision
from fsr_lab.core.types import Attack, Criterion
from fsr_lab.core.units import nonnegative
from fsr_lab.strategy.base import Strategy


class MART(Strategy):
    """Misclassification-aware adversarial training (Wang et al., ICLR 2020, Eq. 11; no arXiv id).

    bce(z(x'), y) + lambda_kl * KL(p(x) || p(x')) * (1 - p_y(x)), both batch means: the images that the clean forward
    gets wrong are pulled hardest. Gradients flow through both distributions and through the weight.

    The constants inside the logarithm and the weight are the released code's, whose training script and paper have
    lambda 5. On a defence's auxiliary logits the weight is the final logits', as in CAS's MART.

    Args:
        attack: crafts the training examples.
        lambda_kl: weight of the pull, the paper's lambda.
        concat: one forward, and one BatchNorm batch, for clean and adversarial images.
        share_noise: the defences draw the same noise for clean and adversarial images.

    Raises:
        ValueError: lambda_kl is negative.
    """

    needs_clean = True
    classification = "bce"

    def __init__(
        self, *, attack: Attack, lambda_kl: float = 5.0, concat: bool = False, share_noise: bool = False
    ) -> None:
        super().__init__(attack=attack, concat=concat, share_noise=share_noise)
        self.lambda_kl = nonnegative("lambda_kl", lambda_kl)

    def criterion(
        self, adv: Tensor, clean: Tensor | None, y: Tensor, weigh_by: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return {"bce", "kl"}; the weight's probabilities come from `weigh_by` (N, K), the clean logits if None."""
        assert clean is not None
        weigh_by = clean if weigh_by is None else weigh_by
        log_p = full_precision(clean).log_softmax(1)
        log_q = (full_precision(adv).softmax(1) + 1e-12).log()
        divergence = (log_p.exp() * (log_p - log_q)).sum(1)
        true = full_precision(weigh_by).softmax(1).gather(1, y[:, None]).squeeze(1)
        kl = (divergence * (1.0000001 - true)).mean()
        return {"bce": boosted_cross_entropy(adv, y).mean(), "kl": self.lambda_kl * kl}

    def auxiliary_criterion(self, clean: Tensor | None) -> Criterion:
        """Return the criterion weighted by the final logits' probabilities."""
        return partial(self.criterion, weigh_by=clean)

"""What CAS and CIFS share: a probe, a small classifier on pooled features, and the losses on its logits.

The strategy's criterion is applied to the probe's logits as it is to the network's, which gives the structure of the
released TRADES and MART variants without either side naming the other.
"""

from collections.abc import Mapping

from torch import Tensor

from fsr_lab.core.precision import full_precision
from fsr_lab.core.types import Criterion, Forward, SampleLoss

PROBE = "p_probe"
"""The key under which a probe's logits (N, K) are filed."""


def pooled(features: Tensor, channels: int) -> Tensor:
    """Return the spatial means (N, C) of (N, C, H, W) features.

    Raises:
        ValueError: the features have another number of channels than the probe was built for.
    """
    if features.shape[1] != channels:
        raise ValueError(f"expected features of {channels} channels, got {features.shape[1]}")
    return features.mean((2, 3))


def reweighted(features: Tensor, mask: Tensor) -> Tensor:
    """Multiply each channel of (N, C, H, W) features by its entry of a mask (N, C), in the features' own type."""
    return (features * mask[:, :, None, None]).to(features.dtype)


def mean_row(rows: Tensor, logits: Tensor, tau: float) -> Tensor:
    """Return sum_k softmax(c / tau)_k W_k, (N, C): what takes the row of the argmax's place for adaptive attacks.

    Args:
        rows: W, (K, C), one for each class.
        logits: c, (N, K).
        tau: temperature.
    """
    return full_precision((logits / tau).softmax(1) @ rows)


def probe_losses(
    adv: Forward, y: Tensor, point: str, *, clean: Forward | None, criterion: Criterion, beta: float
) -> dict[str, Tensor]:
    """Return the strategy's terms on a probe's logits, each times beta; see `FeatureDefense.auxiliary_loss`."""
    clean_logits = None if clean is None else clean.aux[point][PROBE]
    terms = criterion(adv.aux[point][PROBE], clean_logits, y)
    return {name: beta * value for name, value in terms.items()}


def probe_attack_terms(
    adv_aux: Mapping[str, Tensor],
    y: Tensor,
    clean_aux: Mapping[str, Tensor] | None,
    loss: SampleLoss,
    *,
    beta: float,
) -> Tensor:
    """Return (N,), beta times the crafting loss on a probe's logits; see `FeatureDefense.attack_terms`."""
    return beta * loss(adv_aux[PROBE], y, None if clean_aux is None else clean_aux[PROBE])

"""Channel-wise Importance-based Feature Selection (Yan et al., ICML 2021, arXiv:2102.05311)."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fsr_lab.core.defense import FeatureDefense
from fsr_lab.core.precision import full_precision
from fsr_lab.core.route import Route, with_gradient_of
from fsr_lab.core.types import Criterion, DefenseOutput, FeatureShape, Forward, SampleLoss
from fsr_lab.core.units import nonnegative
from fsr_lab.defense.probe import PROBE, mean_row, pooled, probe_attack_terms, probe_losses, reweighted

SHARPNESS = 5.0
"""Beta of the probe's Softplus, as released."""


class CIFS(FeatureDefense):
    """Scales each channel by its importance to two classes, by a softmax over channels.

    Importance is the derivative of the two classes' summed logits by the feature, summed over space, as the probe
    takes it at a detached copy. The classes are the two most likely ones; while training with labels the first is
    the true one, and the second stays the prediction of second rank, be it the true class or not.

    The released code differentiates inside its forward pass, and so fails wherever gradients are off. Both of its
    probes allow a closed form, the same masks and gradients: with c = V softplus(U g + u) + v on the spatial means
    g, the importance is U^T ((V[k1] + V[k2]) * sigmoid(5 (U g + u))), and W[k1] + W[k2] for a linear probe. Masks
    train the probe's weights and pass no gradient on to the features, and an attack on the logits alone is blind to
    them. So training crafts against the probe as well: `attack_terms`.

    A mask sums to one over the channels, so that features shrink to about 1 / C of their size.

    Deviation: the released code multiplies the whole loss by 3 / (beta + 1), which is one at its beta of 2. Here
    nothing is multiplied: another beta shifts the balance of the terms as it does there, and leaves the strategy's
    own term, and so the step size, as it is.

    Routes give a mask's gradient back and leave its values as they are. "through" does not detach it; only a hidden
    probe knows it, as a linear one's mask follows the features by the choice of the classes alone. `backward_tau` gives
    the choice a gradient too: in the derivative, twice the rows' mean, 2 sum_k softmax(c / tau)_k V_k, stands for
    V[k1] + V[k2]. Where labels choose, it changes nothing.

    Auxiliary tensors: `p_probe` (N, K) logits of the probe, not detached.

    Args:
        shape: of the feature; sizes only the channels.
        num_classes: K.
        beta: weight of the probe's loss, in training and in crafting alike.
        hidden: hidden units of the probe; None is a linear one.

    Raises:
        ValueError: fewer than two classes, a negative beta, fewer than one hidden unit.
    """

    routes: ClassVar[frozenset[str]] = frozenset({"f_tilde", "through", "backward_tau"})

    def __init__(self, shape: FeatureShape, num_classes: int, *, beta: float = 2.0, hidden: int | None = None) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"expected at least 2 classes for CIFS, whose masks follow two, got {num_classes}")
        if hidden is not None and hidden < 1:
            raise ValueError(f"expected hidden of at least 1, or null for a linear probe, got {hidden}")
        self.beta = nonnegative("beta", beta)
        self.channels = shape.channels
        self.inner = None if hidden is None else nn.Linear(shape.channels, hidden)
        self.outer = nn.Linear(hidden or shape.channels, num_classes)
        if hidden is None:
            # declared per instance here: what the option leaves of the class's word
            self.routes = self.routes - {"through"}  # type: ignore[misc]

    def forward(
        self,
        features: Tensor,
        targets: Tensor | None = None,
        *,
        route: Route | None = None,
        want_aux: bool = True,
    ) -> DefenseOutput:
        """Scale the channels of (N, C, H, W) features; see `FeatureDefense.forward`."""
        route, labels = route or Route(), targets if self.training else None
        tau = route.backward_tau if labels is None else None
        means = pooled(features, self.channels)
        constant = means.detach()
        logits = self._logits(means if want_aux or tau is not None else constant)
        ranked = logits.detach().topk(2, dim=1).indices
        first = ranked[:, 0] if labels is None else labels
        mask = self.importance(means if route.mask_gradient == "through" else constant, first, ranked[:, 1]).softmax(1)
        if tau is not None:
            rows = 2 * mean_row(full_precision(self.outer.weight), logits, tau)
            mask = with_gradient_of(self._derivative(means, rows).softmax(1), mask)
        return DefenseOutput(reweighted(features, mask), {PROBE: logits} if want_aux else {})

    def importance(self, means: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Return (N, C), the derivative of two classes' summed logits by each channel, in float32.

        Args:
            means: (N, C) spatial means.
            first: (N,) classes.
            second: (N,) classes; may equal `first`.
        """
        rows = full_precision(self.outer.weight)
        return self._derivative(means, rows[first] + rows[second])

    def auxiliary_loss(
        self, adv: Forward, y: Tensor, point: str, *, clean: Forward | None, criterion: Criterion
    ) -> dict[str, Tensor]:
        """Return the strategy's criterion on the probe's logits, times beta."""
        return probe_losses(adv, y, point, clean=clean, criterion=criterion, beta=self.beta)

    def attack_terms(
        self,
        adv_aux: Mapping[str, Tensor],
        y: Tensor,
        clean_aux: Mapping[str, Tensor] | None,
        loss: SampleLoss,
    ) -> Tensor:
        """Return the crafting loss on the probe's logits, times beta."""
        return probe_attack_terms(adv_aux, y, clean_aux, loss, beta=self.beta)

    def _derivative(self, means: Tensor, row: Tensor) -> Tensor:
        """Return the derivative by each channel, (N, C), of the logit that a row of the outer layer gives."""
        if self.inner is None:
            return row
        slope = torch.sigmoid(SHARPNESS * full_precision(self.inner(means)))
        return full_precision((row * slope) @ full_precision(self.inner.weight))

    def _logits(self, means: Tensor) -> Tensor:
        if self.inner is not None:
            means = functional.softplus(self.inner(means), beta=SHARPNESS)
        return full_precision(self.outer(means))

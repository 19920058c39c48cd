"""Channel-wise Activation Suppressing (Bai et al., ICLR 2021, arXiv:2103.08307)."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from fsr_lab.core.defense import FeatureDefense
from fsr_lab.core.precision import full_precision
from fsr_lab.core.route import Route, with_gradient_of
from fsr_lab.core.types import Criterion, DefenseOutput, FeatureShape, Forward, SampleLoss
from fsr_lab.core.units import nonnegative
from fsr_lab.defense.probe import PROBE, mean_row, pooled, probe_attack_terms, probe_losses, reweighted


class CAS(FeatureDefense):
    """Scales each channel by what a linear probe makes of it for one class: f * W[class], without a bias.

    The class is the true one while training, and the probe's own prediction otherwise, or where no labels are
    given. Weights may be negative; nothing is normalised. The mask trains the probe's weights; through the choice
    of the class no gradient flows, and an attack on the logits alone is blind to it. So training crafts against
    the probe as well: `attack_terms`.

    Routes give the gradient through the choice back: `tau` takes the rows' mean, sum_k softmax(c / tau)_k W_k, for the
    row of the predicted class, `backward_tau` takes that mean's derivative and leaves the values as they are. Where
    labels choose, nothing is predicted, and neither changes anything.

    Auxiliary tensors: `p_probe` (N, K) logits of the probe on the spatial means.

    Args:
        shape: of the feature; sizes only the channels.
        num_classes: K.
        beta: weight of the probe's loss, in training and in crafting alike.

    Raises:
        ValueError: a negative beta.
    """

    routes: ClassVar[frozenset[str]] = frozenset({"f_tilde", "tau", "backward_tau"})

    def __init__(self, shape: FeatureShape, num_classes: int, *, beta: float = 2.0) -> None:
        super().__init__()
        self.beta = nonnegative("beta", beta)
        self.probe = nn.Linear(shape.channels, num_classes)

    def forward(
        self,
        features: Tensor,
        targets: Tensor | None = None,
        *,
        route: Route | None = None,
        want_aux: bool = True,
    ) -> DefenseOutput:
        """Scale the channels of (N, C, H, W) features; see `FeatureDefense.forward`."""
        labels = targets if self.training else None
        aux: dict[str, Tensor] = {}
        if want_aux or labels is None:
            logits = full_precision(self.probe(pooled(features, self.probe.in_features)))
            aux = {PROBE: logits} if want_aux else {}
        rows = full_precision(self.probe.weight)
        mask = _predicted(rows, logits, route or Route()) if labels is None else rows[labels]
        return DefenseOutput(reweighted(features, mask), aux)

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


def _predicted(rows: Tensor, logits: Tensor, route: Route) -> Tensor:
    """Return the row (N, C) of the predicted class, under a route's temperatures."""
    mask = rows[logits.argmax(1)] if route.tau is None else mean_row(rows, logits, route.tau)
    if route.backward_tau is None:
        return mask
    return with_gradient_of(mean_row(rows, logits, route.backward_tau), mask)

"""The contract of every feature defence."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from fsr_lab.core.route import Route
from fsr_lab.core.types import Criterion, DefenseOutput, Forward, SampleLoss


class FeatureDefense(nn.Module):
    """A module on feature maps that knows its own loss, and neither its network nor the training strategy.

    Built by a partial as `build(shape=FeatureShape, num_classes=int)`. Subclasses fill `forward`, and the other
    two holes where they have something to say.

    Class attributes, declared facts that tests and evaluations hold against the behaviour:
        eval_noise: random at test time by definition (SAP); evaluations then average over draws.
        training_noise: draws noise while its own `training` flag is set, and reads no labels on account of it.
        routes: the parts and mask rules of `Route` that it can follow.
        needs_clean: its auxiliary loss reads the forward on clean images, which not every strategy makes.
        follows_backbone_init: initialised as its network initialises itself, where the network says how.
    """

    eval_noise: ClassVar[bool] = False
    training_noise: ClassVar[bool] = False
    routes: ClassVar[frozenset[str]] = frozenset()
    needs_clean: ClassVar[bool] = False
    follows_backbone_init: ClassVar[bool] = False

    def forward(
        self,
        features: Tensor,
        targets: Tensor | None = None,
        *,
        route: Route | None = None,
        want_aux: bool = True,
    ) -> DefenseOutput:
        """Replace the tapped features.

        Args:
            features: (N, C, H, W).
            targets: (N,) labels, used only while `self.training`; in eval mode masks follow predictions.
            route: how to run; None is as deployed.
            want_aux: False when nobody reads `aux` (crafting, inference): auxiliary heads then do not run.
        """
        raise TypeError(f"{type(self).__name__} must define forward(features, targets, *, route, want_aux)")

    def auxiliary_loss(
        self, adv: Forward, y: Tensor, point: str, *, clean: Forward | None, criterion: Criterion
    ) -> dict[str, Tensor]:
        """Return the defence's own loss terms, already weighted; none by default."""
        return {}

    def attack_terms(
        self,
        adv_aux: Mapping[str, Tensor],
        y: Tensor,
        clean_aux: Mapping[str, Tensor] | None,
        loss: SampleLoss,
    ) -> Tensor | None:
        """Return (N,) what crafting must raise besides the logits' loss (CAS, CIFS); nothing by default."""
        return None

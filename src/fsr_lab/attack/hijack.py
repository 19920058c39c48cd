"""Recalibration hijack: what a defence adds to the logits is turned against the true class."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from fsr_lab.attack.along_route import AlongRoute
from fsr_lab.core.objective import TargetedMargin
from fsr_lab.core.passes import Forwards
from fsr_lab.core.route import Route
from fsr_lab.core.types import Classifier, Target, TargetedLoss

UNDEFENDED = AlongRoute(route=Route(part="f"))


@dataclass(frozen=True, kw_only=True)
class Hijack:
    """Raises the defences' own contribution towards a target: z_t - z_y as deployed, minus z_t - z_y without them.

    Of FSR before a head that is linear on the spatial mean it is exactly (W_t - W_y) . GAP((1 - m) R(f-)). Differs, for
    heads that are not, from the Jacobian's row in the place of W_t - W_y: this is the true difference, of which that is
    the first order.

    Attributes:
        target: the wrong class, by the network's own logits on the clean images.

    Raises:
        ValueError: when called, no defence that can be left out.
    """

    target: Target

    loss: ClassVar[TargetedLoss] = TargetedMargin()
    reads_aux: ClassVar[bool] = True
    """So that the deployed pass serves the objectives beside it, too."""
    forwards: ClassVar[Forwards] = Forwards(once=1, each=2)

    @property
    def is_random(self) -> bool:
        """Whether the target is drawn."""
        return self.target.is_random

    def aimed(self, target: Target) -> "Hijack":
        """Return the same, leading to another target."""
        return replace(self, target=target)

    def lacks(self, model: Classifier, x: Tensor) -> str | None:
        """Tell that no defence can be left out, if none can."""
        return UNDEFENDED.lacks(model, x)

    def prepare(self, model: Classifier, x: Tensor, y: Tensor) -> Mapping[str, Tensor]:
        return {"target": self.target(model(x), y)}

    def __call__(self, model: Classifier, x_adv: Tensor, y: Tensor, prepared: Mapping[str, Tensor]) -> Tensor:
        deployed, undefended = model(x_adv), UNDEFENDED(model)(x_adv)
        return self.loss(deployed, y, prepared["target"]) - self.loss(undefended, y, prepared["target"])

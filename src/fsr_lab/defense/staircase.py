"""A staircase: it hides gradients and gives no robustness, so that evaluations can be tried on it."""

from typing import ClassVar

from torch import Tensor

from fsr_lab.core.defense import FeatureDefense
from fsr_lab.core.precision import full_precision
from fsr_lab.core.route import Route, mask_by
from fsr_lab.core.types import DefenseOutput, FeatureShape
from fsr_lab.core.units import fraction


class Staircase(FeatureDefense):
    """Rounds features to steps, by a sigmoid so steep that float32 knows almost nowhere a derivative of it.

    What goes on is height * (floor(u) + sigmoid((u - floor(u) - 1/2) / tau)) of u = f / height, the network underneath
    but for half a step: as fragile as that, and under gradient attacks nearly as accurate as without any. Put on a
    trained network after the fact: in training mode it passes features on as they are. A masked gradient is what
    evaluations must find (Athalye et al., 2018, arXiv:1802.00420, Section 3.1, shattered gradients); whoever reports
    this network as robust has measured the mask. No labels, no loss, no auxiliary tensors.

    Routes: `straight_through` takes the derivative for one, `backward_tau` for that of a sigmoid of that temperature.

    Args:
        shape: of the feature; not used.
        num_classes: not used.
        height: of a step, in the features' units.
        tau: temperature of the sigmoid, in steps.

    Raises:
        ValueError: a height or a temperature that is not above 0.
    """

    routes: ClassVar[frozenset[str]] = frozenset({"straight_through", "backward_tau", "f_tilde"})

    def __init__(self, shape: FeatureShape, num_classes: int, *, height: float = 0.25, tau: float = 1e-7) -> None:
        super().__init__()
        self.height, self.tau = fraction(height), fraction(tau)
        for name in ("height", "tau"):
            if not getattr(self, name) > 0:
                raise ValueError(f"expected {name} above 0, got {getattr(self, name)}")

    def forward(
        self,
        features: Tensor,
        targets: Tensor | None = None,
        *,
        route: Route | None = None,
        want_aux: bool = True,
    ) -> DefenseOutput:
        """Round (N, C, H, W) features; see `FeatureDefense.forward`. Labels are not used."""
        if self.training:
            return DefenseOutput(features, {})
        steps = full_precision(features) / self.height
        floor = steps.detach().floor()
        rise = mask_by(route or Route(), steps - floor - 0.5, self.tau)
        return DefenseOutput((self.height * (floor + rise)).to(features.dtype), {})

"""Crafting through another function of the same weights: backward passes replaced, other paths, noise, precision."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from fsr_lab.attack.watched import Watched, reads_aux
from fsr_lab.core.passes import Forwards, forwards_of
from fsr_lab.core.types import Aimed, Classifier, Objective, Particular, SampleLoss, Target, TargetedLoss, View


@dataclass(frozen=True, kw_only=True)
class Through:
    """An objective on a view of the network instead of the network itself.

    Source: backward passes replaced (BPDA) and noise averaged (EoT), Athalye et al., 2018 (arXiv:1802.00420).
    An attack that chooses among its iterates still chooses by the network's own logits: gradients come from the view,
    outcomes never.

    Attributes:
        view: gives the function whose gradient is taken.
        objective: what is raised on it.
    """

    view: View
    objective: Objective

    @property
    def loss(self) -> SampleLoss | TargetedLoss:
        """The objective's."""
        return self.objective.loss

    @property
    def is_random(self) -> bool:
        """Whether `prepare` or the view draws random numbers."""
        return self.objective.is_random or self.view.is_random

    @property
    def reads_aux(self) -> bool:
        """Whether the objective reads auxiliary tensors, so that one pass with them serves all."""
        return reads_aux(self.objective)

    @property
    def forwards(self) -> Forwards:
        """Forwards at most; see `forwards_of`. A view of several passes tells them as `forwards`."""
        once, each = forwards_of(self.objective)
        passes: int = getattr(self.view, "forwards", 1)
        return Forwards(once * passes, each * passes)

    def aimed(self, target: Target) -> "Through":
        """Return the same, leading to another target where the objective leads to one."""
        if not isinstance(self.objective, Aimed):
            return self
        return replace(self, objective=self.objective.aimed(target))

    def lacks(self, model: Classifier, x: Tensor) -> str | None:
        """Tell what the view misses on a network, or the objective on the view."""
        lack = self.view.lacks(model, x)
        if lack is None and isinstance(self.objective, Particular):
            return self.objective.lacks(self.view(model), x)
        return lack

    def prepare(self, model: Classifier, x: Tensor, y: Tensor) -> Mapping[str, Tensor]:
        return self.objective.prepare(self.view(model), x, y)

    def __call__(self, model: Classifier, x_adv: Tensor, y: Tensor, prepared: Mapping[str, Tensor]) -> Tensor:
        # watched, a network is under attack: what a view costs to make is paid once, not in every step
        seen = model.through(self.view) if isinstance(model, Watched) else self.view(model)
        return self.objective(seen, x_adv, y, prepared)

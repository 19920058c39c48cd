"""A weighted sum of objectives: what adaptive attacks raise beside the loss on the logits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fsr_lab.attack.watched import reads_aux
from fsr_lab.core.passes import Forwards, forwards_of
from fsr_lab.core.types import Aimed, Classifier, Objective, Particular, SampleLoss, Target, TargetedLoss


@dataclass(frozen=True, kw_only=True)
class WeightedSum:
    """Raises several objectives at once; a negative weight lowers one. One of weight zero is not computed.

    Attributes:
        objectives: what is summed, the loss on the logits first.
        weights: as many.

    Raises:
        ValueError: another number of weights, or no weight but zeros.
    """

    objectives: Sequence[Objective]
    weights: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.objectives) != len(self.weights) or not any(self.weights):
            raise ValueError(
                f"expected a weight for each of {len(self.objectives)} objectives, and one that is not 0, "
                f"got {list(self.weights)}"
            )
        object.__setattr__(self, "objectives", tuple(self.objectives))
        object.__setattr__(self, "weights", tuple(float(weight) for weight in self.weights))

    @property
    def loss(self) -> SampleLoss | TargetedLoss:
        """The first objective's."""
        return self.objectives[0].loss

    @property
    def is_random(self) -> bool:
        """Whether `prepare` draws random numbers."""
        return any(objective.is_random for objective in self.objectives)

    @property
    def reads_aux(self) -> bool:
        """Whether it reads auxiliary tensors, so that one pass with them serves all."""
        return any(reads_aux(objective) for objective in self.objectives)

    @property
    def forwards(self) -> Forwards:
        """Forwards at most; see `forwards_of`. Objectives that ask the network itself share a pass with its tensors."""
        once = sum(forwards_of(objective).once for objective in self.objectives)
        summed = [objective for objective, weight in zip(self.objectives, self.weights, strict=True) if weight]
        own = sum(forwards_of(objective).each for objective in summed if hasattr(objective, "forwards"))
        shared = sum(not hasattr(objective, "forwards") for objective in summed)
        return Forwards(once, own + (min(shared, 1) if self.reads_aux else shared))

    def aimed(self, target: Target) -> "WeightedSum":
        """Return the sum with every objective that leads to a class leading to another one."""
        aimed = [each.aimed(target) if isinstance(each, Aimed) else each for each in self.objectives]
        return replace(self, objectives=aimed)

    def lacks(self, model: Classifier, x: Tensor) -> str | None:
        """Tell what the first of the objectives that misses something misses."""
        found = (each.lacks(model, x) for each in self.objectives if isinstance(each, Particular))
        return next((lack for lack in found if lack is not None), None)

    def prepare(self, model: Classifier, x: Tensor, y: Tensor) -> Mapping[str, Tensor]:
        return {
            f"{place} {name}": value
            for place, objective in enumerate(self.objectives)
            for name, value in objective.prepare(model, x, y).items()
        }

    def __call__(self, model: Classifier, x_adv: Tensor, y: Tensor, prepared: Mapping[str, Tensor]) -> Tensor:
        values = []
        for place, (objective, weight) in enumerate(zip(self.objectives, self.weights, strict=True)):
            if weight:
                own = {name.partition(" ")[2]: each for name, each in prepared.items() if name.startswith(f"{place} ")}
                values.append(weight * objective(model, x_adv, y, own))
        return torch.stack(values).sum(0)

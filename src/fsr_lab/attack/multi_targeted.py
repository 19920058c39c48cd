"""Multi-targeted: one run of PGD towards each of the most likely wrong classes."""

from dataclasses import dataclass, replace

from torch import Tensor

from fsr_lab.attack.pgd import PGD
from fsr_lab.attack.worst_case import worst_case
from fsr_lab.attack.wrapper import Wrapper
from fsr_lab.core.crafting import judging
from fsr_lab.core.passes import Passes
from fsr_lab.core.targets import Ranked, Towards
from fsr_lab.core.types import Classifier, TargetedLoss
from fsr_lab.core.units import whole


@dataclass(frozen=True, kw_only=True)
class MultiTargeted(Wrapper):
    """PGD on a targeted loss for one wrong class after the other; a sample that is fooled leaves the next ones.

    Source: Gowal et al., 2019 (arXiv:1910.09338). Differs: the first few classes, as AutoAttack's targeted members
    have nine of them, where the paper takes all.

    Attributes:
        attack: the run towards each class, whose objective is replaced.
        loss: what is raised in its place.
        targets: number of classes, from the most likely wrong one of the clean image on; all, if there are fewer.

    Raises:
        ValueError: fewer than one class; when called, a network with too few classes for the loss.
    """

    attack: PGD
    loss: TargetedLoss
    targets: int

    def __post_init__(self) -> None:
        whole("targets", self.targets, 1)

    def passes(self, num_classes: int) -> Passes:
        """Return the most passes of a sample, a look at each run's result among them; see `Budgeted`."""
        run = self._towards(1).passes(num_classes).plus(Passes(1))
        return Passes(1).plus(run.times(min(self.targets, num_classes - 1)))

    def __call__(self, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        """Return x_adv (N, C, H, W), detached, in the threat set around x.

        Args:
            model: maps images to logits.
            x: (N, C, H, W) in [0, 1].
            y: (N,) int64 labels.
        """
        with judging(model) as deployed:
            wrong = deployed(x[:1]).shape[1] - 1
        return worst_case((self._towards(rank + 1) for rank in range(min(self.targets, wrong))), model, x, y)

    def _towards(self, rank: int) -> PGD:
        return replace(self.attack, objective=Towards(loss=self.loss, target=Ranked(rank=rank)))

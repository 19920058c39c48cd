"""Restarts: an attack that draws is run several times, and each sample's worst image is kept."""

from dataclasses import dataclass
from itertools import repeat

from torch import Tensor

from fsr_lab.attack.worst_case import worst_case
from fsr_lab.attack.wrapper import Wrapper
from fsr_lab.core.passes import Passes
from fsr_lab.core.types import Classifier
from fsr_lab.core.units import whole


@dataclass(frozen=True, kw_only=True)
class Restarts(Wrapper):
    """The same attack again and again on the samples that withstand, each time from where it then draws its start.

    The option of Madry et al., 2018 (arXiv:1706.06083), Section 5. The first run is the attack alone; what `worst_case`
    says of draws and of who leaves holds.

    Attributes:
        attack: what is run.
        restarts: number of runs, at most.

    Raises:
        ValueError: fewer than one run, or several of an attack that draws nothing.
    """

    restarts: int

    def __post_init__(self) -> None:
        if whole("restarts", self.restarts, 1) > 1 and not self.attack.is_random:
            raise ValueError(
                f"{self.restarts} runs of an attack that draws nothing are all the same; give attack.random_start=true"
            )

    def passes(self, num_classes: int) -> Passes:
        """Return the most passes of a sample, a look at each run's result among them; see `Budgeted`."""
        return self.attack.passes(num_classes).plus(Passes(1)).times(self.restarts)

    def __call__(self, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        """Return x_adv (N, C, H, W), detached, in the threat set around x.

        Args:
            model: maps images to logits.
            x: (N, C, H, W) in [0, 1].
            y: (N,) int64 labels.
        """
        return worst_case(repeat(self.attack, self.restarts), model, x, y)

"""Alternating masks: FSR's mask is held still for some steps of PGD, then taken anew where they led."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from fsr_lab.attack.on_aux import filed, lacks_aux
from fsr_lab.attack.pgd import PGD
from fsr_lab.attack.through import Through
from fsr_lab.attack.wrapper import Wrapper
from fsr_lab.core.crafting import crafting, deployed_margins
from fsr_lab.core.passes import Passes
from fsr_lab.core.route import Route
from fsr_lab.core.types import Classifier, Particular
from fsr_lab.core.units import whole


@dataclass(frozen=True, kw_only=True)
class AlternatingMasks(Wrapper):
    """Rounds of PGD through the network with its masks frozen: gradients of what the mask lets through, none of itself.

    In each round the mask of every point that files one is frozen where the image stands, and PGD goes on from there.
    In the first, that is the clean image, and PGD starts as it always does. Of all rounds' ends the one with the
    smallest margin on the deployed model is returned, which costs one forward a round, as does each freezing.

    Attributes:
        attack: one round, of a few steps; its objective is raised on the network with the frozen masks.
        rounds: number of them.

    Raises:
        ValueError: no round, or images that are resized in each step, which no frozen mask fits; when called, no
            defence that files a mask.
    """

    attack: PGD
    rounds: int

    def __post_init__(self) -> None:
        whole("rounds", self.rounds, 1)
        if self.attack.diversity is not None:
            raise ValueError("frozen masks have the size of the clean image's: give attack.diversity=null")

    @property
    def exact_on_linear(self) -> bool:
        """Never: there is no mask in a linear model."""
        return False

    def lacks(self, model: Classifier, x: Tensor) -> str | None:
        """Tell that no defence files a mask, if none does, or what the objective misses."""
        lack, objective = lacks_aux(model, x, "mask"), self.attack.objective
        if lack is None and isinstance(objective, Particular):
            with torch.no_grad():
                return objective.lacks(_frozen(model, x[:1])(model), x[:1])
        return lack

    def passes(self, num_classes: int) -> Passes:
        """Return the most passes of a sample, two looks of each round among them; see `Budgeted`."""
        return self.attack.passes(num_classes).plus(Passes(2)).times(self.rounds)

    def __call__(self, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        """Return x_adv (N, C, H, W), detached, in the threat set around x.

        Args:
            model: maps images to logits.
            x: (N, C, H, W) in [0, 1].
            y: (N,) int64 labels.
        """
        return self._run(None, model, x, y)

    def run_from(self, start: Tensor, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        """Return what rounds that begin at `start` end with; see `StartsAnywhere`."""
        return self._run(start, model, x, y)

    def _run(self, start: Tensor | None, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():
            x_adv, found, least = start, x, torch.full_like(y, torch.inf, dtype=x.dtype)
            for _ in range(self.rounds):
                attack = self._round(model, x, x if x_adv is None else x_adv)
                x_adv = attack(model, x, y) if x_adv is None else attack.run_from(x_adv, model, x, y)
                margins = deployed_margins(model, x_adv, y).to(least)
                is_lower = margins < least
                found, least = torch.where(is_lower[:, None, None, None], x_adv, found), margins.where(is_lower, least)
        return found

    def _round(self, model: Classifier, x: Tensor, x_adv: Tensor) -> PGD:
        """Return the attack with the masks frozen at `x_adv`."""
        with crafting(model, self.attack.policy, example=x, noise=self.attack.noise) as attacked, torch.no_grad():
            view = _frozen(attacked, x_adv.detach().clone())
        return replace(self.attack, objective=Through(view=view, objective=self.attack.objective))


@dataclass(frozen=True, eq=False)
class _Frozen:
    """The view of a network along given routes, {point: route}, whose masks are those of another moment."""

    routes: Mapping[str, Route]
    is_random: ClassVar[bool] = False
    keeps_values: ClassVar[bool] = False

    def __call__(self, model: Classifier) -> Classifier:
        return cast(Classifier, cast(Any, model).routed(self.routes))

    def lacks(self, model: Classifier, x: Tensor) -> str | None:
        return None


def _frozen(model: Classifier, x: Tensor) -> _Frozen:
    """Return the view with the masks that every point which files one has on x."""
    forward, _ = filed(model, x, "mask")
    return _Frozen({point: Route(mask=aux["mask"]) for point, aux in forward.aux.items() if "mask" in aux})

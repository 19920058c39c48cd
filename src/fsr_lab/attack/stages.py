"""Stages: attacks one after the other, each from where the one before it stopped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import cast

import torch
from torch import Tensor

from fsr_lab.attack.composite import Composite, check_alike
from fsr_lab.attack.wrapper import Crafter, lack_of
from fsr_lab.core.crafting import deployed_margins
from fsr_lab.core.passes import Passes
from fsr_lab.core.types import Classifier, StartsAnywhere


@dataclass(frozen=True, kw_only=True)
class Stages(Composite):
    """The first attack starts as it always does, each other one at the images that the one before it returned.

    Of each sample that stage's image is returned on which the deployed model's margin z_y - max other is smallest, the
    latest of equal ones; judging costs one forward for each stage. No sample leaves before the last stage.

    A margin decomposition (Ma et al., 2020, arXiv:2006.13726) is an ascent from a random start on one `MarginTerm`,
    then one on the `Margin`; the whole attack is a family of two, one for each term. Differs: one schedule of steps,
    where those of the released code fall from 2 eps along a cosine, in each stage anew, after a first one that raises
    z_y. A continuation is an ascent through one route after the other, from soft masks to the deployed one; a
    refinement is an attack by queries after one by gradients.

    Attributes:
        attacks: in order; of a mapping, which configs compose more easily, the values.

    Raises:
        ValueError: none, several sets or precisions, or one that cannot go on from where another stopped.
    """

    attacks: Sequence[Crafter] | Mapping[str, Crafter]

    def __post_init__(self) -> None:
        given = self.attacks.values() if isinstance(self.attacks, Mapping) else self.attacks
        object.__setattr__(self, "attacks", tuple(given))
        check_alike(self.members)
        for attack in self.members[1:]:
            if not isinstance(attack, StartsAnywhere):
                raise ValueError(f"{attack} starts nowhere but where it always does; only the first stage may")

    @property
    def members(self) -> Sequence[Crafter]:
        """The stages."""
        return cast(Sequence[Crafter], self.attacks)

    def lacks(self, model: Classifier, x: Tensor) -> str | None:
        """Tell what the first of the stages that misses something misses."""
        return next((lack for each in self.members if (lack := lack_of(each, model, x)) is not None), None)

    def passes(self, num_classes: int) -> Passes:
        """Return the most passes of a sample, a look at each stage's result among them; see `Budgeted`."""
        return reduce(Passes.plus, [each.passes(num_classes).plus(Passes(1)) for each in self.members])

    def __call__(self, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        """Return x_adv (N, C, H, W), detached, in the threat set around x.

        Args:
            model: maps images to logits.
            x: (N, C, H, W) in [0, 1].
            y: (N,) int64 labels.
        """
        first, *others = self.members
        with torch.inference_mode(False), torch.no_grad():
            found = x_adv = first(model, x, y)
            least = deployed_margins(model, found, y)
            for attack in others:
                assert isinstance(attack, StartsAnywhere)
                x_adv = attack.run_from(x_adv, model, x, y)
                margins = deployed_margins(model, x_adv, y)
                is_lower = margins <= least
                found, least = torch.where(is_lower[:, None, None, None], x_adv, found), margins.where(is_lower, least)
        return found

"""Stages: attacks one after the other, each from where the one before it stopped."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fsr_lab.attack.composite import Composite, check_alike
from fsr_lab.attack.wrapper import Crafter, lack_of
from fsr_lab.core.crafting import deployed_margins
from fsr_lab.core.types import Classifier, StartsAnywhere


@dataclass(frozen=True, kw_only=True)
class Stages(Composite):
    """The first attack starts as it always does, each other one at the images that the one before it returned.

    Of each sample that stage's image is returned on which the deployed model's margin z_y - max other is smallest, the
    latest of equal ones; judging costs one forward for each stage. No sample leaves before the last stage.

    A margin decomposition (Ma et al., 2020, arXiv:2006.13726) is PGD from a random start on one `MarginTerm`, then PGD
    on the `Margin`; the whole attack is a family of two, one for each term. Differs: steps of one size, where those of
    the released code fall from 2 eps along a cosine, in each stage anew, after a first one that raises z_y.
    A continuation is PGD through one route after the other, from soft masks to the deployed one; a refinement is an
    attack by queries after one by gradients.

    Attributes:
        attacks: in order.

    Raises:
        ValueError: none, several sets or precisions, or one that cannot go on from where another stopped.
    """

    attacks: Sequence[Crafter]

    def __post_init__(self) -> None:
        object.__setattr__(self, "attacks", tuple(self.attacks))
        check_alike(self.attacks)
        for attack in self.attacks[1:]:
            if not isinstance(attack, StartsAnywhere):
                raise ValueError(f"{attack} starts nowhere but where it always does; only the first stage may")

    @property
    def members(self) -> Sequence[Crafter]:
        """The stages."""
        return self.attacks

    def lacks(self, model: Classifier, x: Tensor) -> str | None:
        """Tell what the first of the stages that misses something misses."""
        return next((lack for each in self.attacks if (lack := lack_of(each, model, x)) is not None), None)

    def __call__(self, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        """Return x_adv (N, C, H, W), detached, in the threat set around x.

        Args:
            model: maps images to logits.
            x: (N, C, H, W) in [0, 1].
            y: (N,) int64 labels.
        """
        first, *others = self.attacks
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

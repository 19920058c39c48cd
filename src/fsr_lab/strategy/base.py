"""The template every strategy fills: craft, forward, losses."""

from dataclasses import is_dataclass, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from fsr_lab.core.objective import JointWithAux
from fsr_lab.core.types import (
    Attack,
    Crafted,
    Criterion,
    Defended,
    Forward,
    Objective,
    Particular,
    Progress,
    SampleLoss,
    StepOutput,
)


class _HasObjective(Protocol):
    objective: Objective


class Strategy:
    """Trains on one batch: an attack and a criterion. It never names a defence.

    Natural forward first, then the adversarial one, as two BatchNorm batches, as the released TRADES and MART do.
    The criterion is handed to the model's defences, which may apply it to their own auxiliary logits.

    Class attributes:
        needs_clean: the criterion compares with clean images.
        classification: the criterion's term that classifies; the others compare.

    Args:
        attack: crafts the training examples.
        concat: one forward, and one BatchNorm batch, for clean and adversarial images.
        share_noise: the defences draw the same noise for clean and adversarial images.
    """

    needs_clean: bool = False
    classification: str = "ce"
    base: "Strategy | None" = None

    def __init__(self, *, attack: Attack, concat: bool = False, share_noise: bool = False) -> None:
        if concat and share_noise:
            raise ValueError("share_noise is about two forwards, and concat makes them one; set one of them to false")
        self.attack = attack
        self.concat = concat
        self.share_noise = share_noise

    def build_on(self, base: "Strategy") -> None:
        """Become a strategy over another: take from it whatever this one does not define itself.

        Raises:
            ValueError: the base crafts nothing.
        """
        if not hasattr(base, "attack"):
            raise ValueError(
                f"{type(self).__name__} builds on a strategy that attacks, and {type(base).__name__} does not; "
                "give strategy.base=at, trades, mart or alp"
            )
        self.base = base
        self.attack = base.attack
        self.concat, self.share_noise = base.concat, base.share_noise
        self.needs_clean = self.needs_clean or base.needs_clean
        self.classification = base.classification

    def replace_crafting(self, base: "Strategy") -> None:
        """Become a strategy over another, whose crafting this one replaces.

        Raises:
            ValueError: the base crafts in a way of its own, or nothing.
        """
        self.build_on(base)
        if type(base).craft is not Strategy.craft or not hasattr(base.attack, "steps"):
            raise ValueError(
                f"{type(self).__name__} replaces PGD crafting, and {type(base).__name__} crafts in a way of its own; "
                "give strategy.base=at, trades, mart or alp (and let s2o stand outside: strategy=s2o)"
            )

    def criterion(self, adv: Tensor, clean: Tensor | None, y: Tensor) -> dict[str, Tensor]:
        """Return named, weighted scalars from (N, K) logits on adversarial and (if needed) clean images."""
        if self.base is None:
            raise TypeError(f"{type(self).__name__} must define criterion(adv, clean, y)")
        return self.base.criterion(adv, clean, y)

    def auxiliary_criterion(self, clean: Tensor | None) -> Criterion:
        """Return the criterion for a defence's auxiliary logits, given the final logits on clean images."""
        return self.criterion if self.base is None else self.base.auxiliary_criterion(clean)

    def craft(self, model: Defended, x: Tensor, y: Tensor, progress: Progress) -> Crafted:
        """Find the images to train on."""
        return Crafted(x, aimed_at(self.attack, model)(model, x, y), y)

    def forwards(self, model: Defended, crafted: Crafted) -> tuple[Forward | None, Forward]:
        """Return the forward on clean images, where it is needed, and the one on adversarial images."""
        if not self.needs_clean:
            return None, model.forward_with_aux(crafted.x_adv, crafted.y)
        if self.concat:
            count = len(crafted.x)
            both = model.forward_with_aux(torch.cat([crafted.x, crafted.x_adv]), torch.cat([crafted.y, crafted.y]))
            return both.rows(slice(0, count)), both.rows(slice(count, None))
        devices = [crafted.x.device] if crafted.x.is_cuda else []
        with torch.random.fork_rng(devices, enabled=self.share_noise):  # left, the draws begin where they began
            clean = model.forward_with_aux(crafted.x, crafted.y)
        return clean, model.forward_with_aux(crafted.x_adv, crafted.y)

    def losses(self, model: Defended, crafted: Crafted) -> StepOutput:
        """Run the forward work on crafted images; gradients are the caller's."""
        clean, adv = self.forwards(model, crafted)
        losses = self.criterion(adv.logits, None if clean is None else clean.logits, crafted.y)
        losses |= self._defense_losses(model, clean, adv, crafted)
        return StepOutput(losses, adv.logits, crafted.x_adv)

    def __call__(self, model: Defended, x: Tensor, y: Tensor, progress: Progress) -> StepOutput:
        """Run one training step's work up to its losses."""
        return self.losses(model, self.craft(model, x, y, progress))

    def _defense_losses(
        self, model: Defended, clean: Forward | None, adv: Forward, crafted: Crafted
    ) -> dict[str, Tensor]:
        """Return the defences' terms on the attacked part of the batch.

        Where nothing was attacked they are computed all the same and weigh nothing: under DDP, a parameter left out
        of the graph would be an error.
        """
        y, attacked, weight = crafted.y, crafted.attacked, 1.0
        if attacked is not None and len(attacked) == 0:
            weight = 0.0
        elif attacked is not None:
            y, adv = y[attacked], adv.rows(attacked)
            clean = None if clean is None else clean.rows(attacked)
        criterion = self.auxiliary_criterion(None if clean is None else clean.logits)
        terms = model.auxiliary_losses(adv, y, clean=clean, criterion=criterion)
        return terms if weight else {name: weight * value for name, value in terms.items()}


def aimed_at(attack: Attack, model: Defended) -> Attack:
    """Return the attack with a joint objective where a defence of the model adds to what must be raised.

    An objective that looks inside the network already is left as it was chosen.

    Raises:
        ValueError: it does, and the attack has no objective to join it with, or a targeted one.
    """
    if not model.has_attack_terms:
        return attack
    if not is_dataclass(attack) or not hasattr(attack, "objective"):
        raise ValueError(
            f"a defence of this model is trained against an attack on its auxiliary loss too, and "
            f"{type(attack).__name__} has no objective to join it with; train with a PGD attack"
        )
    objective = cast(_HasObjective, attack).objective
    if isinstance(objective, Particular):
        return attack
    loss = objective.loss
    if not isinstance(loss, SampleLoss):
        raise ValueError(
            f"a defence of this model is trained against an attack on its auxiliary loss too, which has no target as "
            f"{loss} has; train with an untargeted attack such as pgd10_train"
        )
    return cast(Attack, replace(cast(Any, attack), objective=JointWithAux(loss)))

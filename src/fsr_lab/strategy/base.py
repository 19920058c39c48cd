"""The template every strategy fills: craft, forward, losses."""

from dataclasses import is_dataclass, replace
from typing import Any, ClassVar, Protocol, cast

from torch import Tensor

from fsr_lab.core.objective import JointWithAux
from fsr_lab.core.types import Attack, Defended, Objective, Progress, StepOutput


class _HasObjective(Protocol):
    objective: Objective


class Strategy:
    """Trains on one batch: an attack and a criterion. It never names a defence.

    Natural forward first, then the adversarial one, as two BatchNorm batches, as the released TRADES and MART do.
    The criterion is handed to the model's defences, which may apply it to their own auxiliary logits.

    Args:
        attack: crafts the training examples.
    """

    needs_clean: ClassVar[bool] = False

    def __init__(self, *, attack: Attack) -> None:
        self.attack = attack

    def criterion(self, adv: Tensor, clean: Tensor | None, y: Tensor) -> dict[str, Tensor]:
        """Return named, weighted scalars from (N, K) logits on adversarial and (if needed) clean images."""
        raise TypeError(f"{type(self).__name__} must define criterion(adv, clean, y)")

    def craft(self, model: Defended, x: Tensor, y: Tensor, progress: Progress) -> Tensor:
        """Return the images to train on, (N, C, H, W)."""
        return aimed_at(self.attack, model)(model, x, y)

    def __call__(self, model: Defended, x: Tensor, y: Tensor, progress: Progress) -> StepOutput:
        """Run one training step's forward work; gradients are the caller's."""
        x_adv = self.craft(model, x, y, progress)
        clean = model.forward_with_aux(x, y) if self.needs_clean else None
        adv = model.forward_with_aux(x_adv, y)
        losses = self.criterion(adv.logits, None if clean is None else clean.logits, y)
        losses |= model.auxiliary_losses(adv, y, clean=clean, criterion=self.criterion)
        return StepOutput(losses, adv.logits, x_adv)


def aimed_at(attack: Attack, model: Defended) -> Attack:
    """Return the attack with a joint objective where a defence of the model adds to what must be raised."""
    if not model.has_attack_terms or not is_dataclass(attack) or not hasattr(attack, "objective"):
        return attack
    objective = cast(_HasObjective, attack).objective
    return cast(Attack, replace(cast(Any, attack), objective=JointWithAux(objective.loss)))

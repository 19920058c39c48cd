"""When a curriculum attacks harder: by what validation and training say, not by the epoch."""

from dataclasses import is_dataclass, replace
from typing import Any, Literal, cast, get_args

from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from fsr_lab.core.suggest import unknown

Rule = Literal["validation", "threshold"]


class Curriculum(Callback):
    """Raises the strength of strategy=cat by the rules of its paper (Cai et al., 2018, arXiv:1805.04807, Algorithm 1).

    "validation": once accuracy under an attack of the present strength has not improved for `patience` epochs and
    training accuracy is above `train_acc`, the stage's best weights are taken up again and the strength rises by one.
    "threshold": the strength rises as soon as training accuracy is above `train_acc`; the weights go on.

    Needs validation every epoch. Its state, the stage's best weights among it, lies in the checkpoints.

    Args:
        rule: see above.
        patience: epochs without improvement.
        train_acc: training accuracy in [0, 1].

    Raises:
        ValueError: an unknown rule or numbers out of range; at the start of a fit, a strategy without a strength.
    """

    def __init__(self, rule: Rule = "validation", patience: int = 10, train_acc: float = 0.9) -> None:
        if rule not in get_args(Rule):
            raise ValueError(unknown("curriculum rule", rule, get_args(Rule)))
        if patience < 1 or not 0 <= train_acc < 1:
            raise ValueError(f"expected patience of at least 1 and train_acc in [0, 1), got {patience} and {train_acc}")
        self.rule = rule
        self.patience = patience
        self.train_acc = train_acc
        self.strength = 0
        self.waited = 0
        self.best_acc = -1.0
        self.best_weights: dict[str, Tensor] = {}
        self._val_attack: Any = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not hasattr(pl_module.strategy, "strength"):
            raise ValueError(
                f"callback=curriculum raises the strength of strategy=cat; {type(pl_module.strategy).__name__} has none"
            )
        self._val_attack = pl_module.val_attack
        self._apply(pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        learnt = float(trainer.callback_metrics["train/acc"]) > self.train_acc
        if self.rule == "validation":
            self._compare(trainer, pl_module)
            learnt = learnt and self.waited >= self.patience
        if not learnt or self.strength >= self._last_strength(pl_module):
            return
        if self.best_weights:
            pl_module.model.load_state_dict(self.best_weights)  # type: ignore[union-attr]
        self.strength, self.waited, self.best_acc, self.best_weights = self.strength + 1, 0, -1.0, {}
        self._apply(pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("strength", "waited", "best_acc", "best_weights")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            setattr(self, name, value)

    def _compare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        name = "val/robust_acc" if self.strength else "val/acc"
        if name not in trainer.callback_metrics:
            raise ValueError(
                f"the validation rule reads {name}, which is not there; set dataset.val_size above 0 and "
                "trainer.check_val_every_n_epoch=1, or take the threshold rule"
            )
        accuracy = float(trainer.callback_metrics[name])
        if accuracy > self.best_acc:
            self.best_acc, self.waited = accuracy, 0
            weights = pl_module.model.state_dict()  # type: ignore[union-attr]
            self.best_weights = {key: value.detach().cpu().clone() for key, value in weights.items()}
        else:
            self.waited += 1

    def _apply(self, pl_module: LightningModule) -> None:
        pl_module.strategy.strength = self.strength  # type: ignore[union-attr]
        if is_dataclass(self._val_attack) and self.strength:
            pl_module.val_attack = replace(cast(Any, self._val_attack), steps=self.strength)

    def _last_strength(self, pl_module: LightningModule) -> int:
        return int(pl_module.strategy.max_strength)  # type: ignore[union-attr, arg-type]

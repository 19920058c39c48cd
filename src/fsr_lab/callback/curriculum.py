"""When a curriculum attacks harder: by what validation and training say, not by the epoch."""

from typing import Any, Literal, get_args

from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics import MeanMetric

from fsr_lab.core.crafting import judging
from fsr_lab.core.suggest import unknown

Rule = Literal["validation", "threshold"]


class Curriculum(Callback):
    """Raises the strength of strategy=cat by the rules of its paper (Cai et al., 2018, arXiv:1805.04807, Algorithm 1).

    "validation": once accuracy on validation images under an attack of the present strength has not improved for
    `patience` epochs and training accuracy is above `train_acc`, the stage's best weights are taken up again and the
    strength rises by one. "threshold": the strength rises as soon as training accuracy is above `train_acc`; the
    weights go on.

    The attack is the strategy's own at that strength, with the smallest step it is drawn with; best.ckpt is chosen by
    val/robust_acc as ever, under one attack for all stages. The online network is judged, whatever is averaged.
    Needs validation every epoch. The state, the stage's best weights among it, lies in the checkpoints.

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
        self._stage_acc = MeanMetric()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._strategy(pl_module).strength = self.strength
        self._stage_acc.to(pl_module.device)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        """Judge the online network under the present strength."""
        if self.rule != "validation":
            return
        x, y = batch
        model: Any = pl_module.model
        x_adv = x
        if self.strength:
            attack = self._strategy(pl_module).attack_of(self.strength, 2 / self.strength)
            x_adv = attack(model, x, y)
        with judging(model) as deployed:
            self._stage_acc.update((deployed(x_adv).argmax(1) == y).float())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        learnt = float(trainer.callback_metrics["train/acc"]) > self.train_acc
        if self.rule == "validation":
            self._compare(pl_module)
            learnt = learnt and self.waited >= self.patience
        if not learnt or self.strength >= self._strategy(pl_module).max_strength:
            return
        if self.best_weights:
            pl_module.model.load_state_dict(self.best_weights)  # type: ignore[union-attr]
        self.strength, self.waited, self.best_acc, self.best_weights = self.strength + 1, 0, -1.0, {}
        self._strategy(pl_module).strength = self.strength

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("strength", "waited", "best_acc", "best_weights")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            setattr(self, name, value)

    def _compare(self, pl_module: LightningModule) -> None:
        if not self._stage_acc.update_called:
            raise ValueError(
                "the validation rule needs validation in every epoch; set dataset.val_size above 0 and "
                "trainer.check_val_every_n_epoch=1, or take the threshold rule"
            )
        accuracy = float(self._stage_acc.compute())
        self._stage_acc.reset()
        if accuracy > self.best_acc:
            self.best_acc, self.waited = accuracy, 0
            weights = pl_module.model.state_dict()  # type: ignore[union-attr]
            self.best_weights = {key: value.detach().cpu().clone() for key, value in weights.items()}
        else:
            self.waited += 1

    @staticmethod
    def _strategy(pl_module: LightningModule) -> Any:
        """Return the strategy that has a strength, which another may stand over."""
        strategy: Any = pl_module.strategy
        while not hasattr(strategy, "strength"):
            strategy = getattr(strategy, "base", None)
            if strategy is None:
                name = type(pl_module.strategy).__name__
                raise ValueError(f"callback=curriculum raises the strength of strategy=cat; {name} has none")
        return strategy

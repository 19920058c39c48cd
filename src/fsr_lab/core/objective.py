"""What attacks maximise: sample losses on logits, and how they are applied to a model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

from torch import Tensor

from fsr_lab.core import losses
from fsr_lab.core.types import Classifier, Defended, Forward, SampleLoss


@dataclass(frozen=True)
class CrossEntropy:
    """-log p_y: PGD's objective (Madry et al., 2018, arXiv:1706.06083)."""

    needs_clean: ClassVar[bool] = False

    def __call__(self, logits: Tensor, y: Tensor, clean_logits: Tensor | None = None) -> Tensor:
        return losses.cross_entropy(logits, y)


@dataclass(frozen=True, kw_only=True)
class Margin:
    """-max(z_y - max other + kappa, 0): the C&W loss (Carlini and Wagner, 2017, arXiv:1608.04644, f_6).

    `kappa` is the confidence at which a sample is left alone; the FSR protocol's 50 never is reached.
    """

    kappa: float = 0.0
    needs_clean: ClassVar[bool] = False

    def __call__(self, logits: Tensor, y: Tensor, clean_logits: Tensor | None = None) -> Tensor:
        return -(losses.margin(logits, y) + self.kappa).clamp_min(0)


@dataclass(frozen=True)
class DLR:
    """Difference of logits ratio (Croce and Hein, 2020, arXiv:2003.01690); needs three classes."""

    needs_clean: ClassVar[bool] = False

    def __call__(self, logits: Tensor, y: Tensor, clean_logits: Tensor | None = None) -> Tensor:
        return losses.dlr(logits, y)

    def for_classes(self, num_classes: int) -> "DLR | Margin":
        """Return the loss, or the margin for fewer than three classes."""
        return self if num_classes >= 3 else Margin()


@dataclass(frozen=True)
class TargetedCrossEntropy:
    """log p_t: the targeted steps of Kurakin et al., 2017 (arXiv:1607.02533), Section 2.3."""

    def __call__(self, logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
        return -losses.cross_entropy(logits, target)


@dataclass(frozen=True)
class TargetedDLR:
    """-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2): APGD-T's loss (as DLR, Eq. 7); needs four classes."""

    def __call__(self, logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
        return losses.targeted_dlr(logits, y, target)

    def for_classes(self, num_classes: int) -> "TargetedDLR | TargetedMargin":
        """Return the loss, or the targeted margin for fewer than four classes."""
        return self if num_classes >= 4 else TargetedMargin()


@dataclass(frozen=True)
class TargetedMargin:
    """-(z_y - z_t): the multi-targeted loss (Gowal et al., 2019, arXiv:1910.09338); needs two classes only."""

    def __call__(self, logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
        return -losses.targeted_margin(logits, y, target)


@dataclass(frozen=True)
class KLFromClean:
    """KL(p(x) || p(x')): TRADES' crafting objective (Zhang et al., 2019, arXiv:1901.08573)."""

    needs_clean: ClassVar[bool] = True

    def __call__(self, logits: Tensor, y: Tensor, clean_logits: Tensor | None = None) -> Tensor:
        if clean_logits is None:
            raise ValueError("KLFromClean compares with the clean logits: pass clean_logits")
        return losses.kl(clean_logits, logits)


@dataclass(frozen=True)
class OnLogits:
    """A sample loss on the model's logits: all that an attack needs of a network it knows nothing about."""

    loss: SampleLoss
    is_random: ClassVar[bool] = False

    def prepare(self, model: Classifier, x: Tensor, y: Tensor) -> Mapping[str, Tensor]:
        return {"logits": model(x)} if self.loss.needs_clean else {}

    def __call__(self, model: Classifier, x_adv: Tensor, y: Tensor, prepared: Mapping[str, Tensor]) -> Tensor:
        return self.loss(model(x_adv), y, prepared.get("logits"))


@dataclass(frozen=True)
class JointWithAux:
    """The same loss on the logits and on whatever the model's defences add to it (CAS, CIFS).

    Of a model without such defences, or any other callable, the logits alone.
    """

    loss: SampleLoss
    is_random: ClassVar[bool] = False

    def prepare(self, model: Classifier, x: Tensor, y: Tensor) -> Mapping[str, Tensor]:
        if not self.loss.needs_clean or not _adds_terms(model):
            return OnLogits(self.loss).prepare(model, x, y)
        clean = cast(Defended, model).forward_with_aux(x)
        flat = {f"{point}|{key}": value for point, aux in clean.aux.items() for key, value in aux.items()}
        return {"logits": clean.logits} | flat

    def __call__(self, model: Classifier, x_adv: Tensor, y: Tensor, prepared: Mapping[str, Tensor]) -> Tensor:
        if not _adds_terms(model):
            return OnLogits(self.loss)(model, x_adv, y, prepared)
        defended = cast(Defended, model)
        adv = defended.forward_with_aux(x_adv)
        clean = _unflatten(prepared) if self.loss.needs_clean else None
        total = self.loss(adv.logits, y, None if clean is None else clean.logits)
        terms = defended.attack_terms(adv, y, clean=clean, loss=self.loss)
        return total if terms is None else total + terms


def _adds_terms(model: Classifier) -> bool:
    return bool(getattr(model, "has_attack_terms", False))


def _unflatten(prepared: Mapping[str, Tensor]) -> Forward:
    """Rebuild the clean forward that `prepare` flattened, so that it survives compaction row by row."""
    aux: dict[str, dict[str, Tensor]] = {}
    for name, value in prepared.items():
        point, bar, key = name.rpartition("|")
        if bar:
            aux.setdefault(point, {})[key] = value
    return Forward(prepared["logits"], aux)

"""What attacks maximise: sample losses on logits, and how they are applied to a model."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, cast, get_args

from torch import Tensor

from fsr_lab.core import losses
from fsr_lab.core.precision import full_precision
from fsr_lab.core.suggest import unknown
from fsr_lab.core.types import Classifier, Defended, Forward, SampleLoss

Term = Literal["true", "wrong"]


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


@dataclass(frozen=True, kw_only=True)
class MarginTerm:
    """One of the two logits that the margin is the difference of: -z_y, or the largest other one.

    Source: the first stage of the margin decomposition attack (Ma et al., 2020, arXiv:2006.13726), for networks on
    which the gradients of the two terms cancel out.

    Attributes:
        term: "true" raises -z_y, "wrong" the largest other logit.

    Raises:
        ValueError: an unknown term.
    """

    term: Term
    needs_clean: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.term not in get_args(Term):
            raise ValueError(unknown("term of the margin", self.term, get_args(Term)))

    def __call__(self, logits: Tensor, y: Tensor, clean_logits: Tensor | None = None) -> Tensor:
        place = y if self.term == "true" else losses.most_likely_wrong(logits, y)
        logit = full_precision(logits).gather(1, place[:, None]).squeeze(1)
        return -logit if self.term == "true" else logit


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


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """A loss on `factor` times the logits, clean ones too: a temperature for losses that saturate.

    Attributes:
        loss: what is computed on them.
        factor: above 1 it sharpens the predictions, below 1 it brings a confident one's gradient back.

    Raises:
        ValueError: a factor that is not positive.
    """

    loss: SampleLoss
    factor: float

    def __post_init__(self) -> None:
        if not self.factor > 0:
            raise ValueError(f"expected a factor above 0, got {self.factor}")

    @property
    def needs_clean(self) -> bool:
        """The loss's."""
        return self.loss.needs_clean

    def for_classes(self, num_classes: int) -> "Scaled":
        """Return the same of the loss that is defined for so few classes."""
        return replace(self, loss=_for_classes(self.loss, num_classes))

    def __call__(self, logits: Tensor, y: Tensor, clean_logits: Tensor | None = None) -> Tensor:
        clean = None if clean_logits is None else self.factor * full_precision(clean_logits)
        return self.loss(self.factor * full_precision(logits), y, clean)


@dataclass(frozen=True, kw_only=True)
class Standardised:
    """A loss on the logits over their own standard deviation, of each sample by itself; clean ones over theirs.

    The deviation (of K values about their mean, with 1/K) is a temperature: no gradient flows through it. With one, the
    loss would know no scale, and its gradient would lack the part along the logits, which is what lowers a confident
    prediction; of two classes nothing would be left.

    Attributes:
        loss: what is computed on them.
    """

    loss: SampleLoss

    @property
    def needs_clean(self) -> bool:
        """The loss's."""
        return self.loss.needs_clean

    def for_classes(self, num_classes: int) -> "Standardised":
        """Return the same of the loss that is defined for so few classes."""
        return replace(self, loss=_for_classes(self.loss, num_classes))

    def __call__(self, logits: Tensor, y: Tensor, clean_logits: Tensor | None = None) -> Tensor:
        return self.loss(_standardised(logits), y, None if clean_logits is None else _standardised(clean_logits))


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


def _for_classes(loss: SampleLoss, num_classes: int) -> SampleLoss:
    fits: Any = getattr(loss, "for_classes", None)
    return loss if fits is None else cast(SampleLoss, fits(num_classes))


def _standardised(logits: Tensor) -> Tensor:
    logits = full_precision(logits)
    return logits / logits.detach().std(1, correction=0, keepdim=True).clamp_min(1e-12)


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

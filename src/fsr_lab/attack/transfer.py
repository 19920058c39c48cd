"""Transfer: craft on one network what another is judged on."""

from dataclasses import dataclass

from torch import Tensor, nn

from fsr_lab.attack.wrapper import Wrapper
from fsr_lab.core.hashing import state_hash
from fsr_lab.core.passes import Passes
from fsr_lab.core.types import Classifier


@dataclass(frozen=True, kw_only=True)
class Transfer(Wrapper):
    """An attack carried out on a source network; the attacked one is never asked, unless it is `with_target`.

    So it costs the target no pass, and no defence of the target can mislead it: where it does better than attacks that
    see the target, those were misled. With the target it is a gradient attack on it like others: on the ensemble of the
    two in logits (Dong et al., 2018, arXiv:1710.06081), of equal weights, whose passes count. The source
    stays where it is: put it on the images' device.

    Attributes:
        source: (N, C, H, W) in [0, 1] to logits (N, K), of the target's classes; eval mode while it is attacked.
        attack: what is run on it.
        label: what a record calls the source; its weights' hash follows it.
        with_target: craft on the mean of the source's and the target's logits.
        optional: without a source nothing is wrong, and the attack tells that it lacks one.

    Raises:
        ValueError: no source.
    """

    source: Classifier | None
    label: str = ""
    with_target: bool = False
    optional: bool = False

    def __post_init__(self) -> None:
        if not callable(self.source) and not (self.source is None and self.optional):
            raise ValueError(
                f"a transfer attack crafts on another network, got {self.source}; give surrogate=RUN, a run such as of "
                "fsr train model=resnet50 strategy=natural defense=none on the same dataset, or a file of weights"
            )

    def __repr__(self) -> str:
        """Tell the settings, the source by its label and weights: the same text in every process."""
        label = self.label or type(self.source).__name__
        weights = f", weights {state_hash(self.source.state_dict())}" if isinstance(self.source, nn.Module) else ""
        # said first where it holds: by these words a record's checks know that it is led by the target's gradients
        target = "with_target=True, " if self.with_target else ""
        return f"Transfer({target}source=<{label}{weights}>, attack={self.attack!r})"

    @property
    def exact_on_linear(self) -> bool:
        """Never: the worst point of the source need not be the target's."""
        return False

    def passes(self, num_classes: int) -> Passes:
        """Return the most of a sample through the source, none of the target's or as many; see `Budgeted`."""
        forwards, gradients, elsewhere = self.attack.passes(num_classes)
        own = (forwards, gradients) if self.with_target else (0, 0)
        return Passes(*own, (forwards + elsewhere[0], gradients + elsewhere[1]))

    def __call__(self, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        """Return x_adv (N, C, H, W), detached, in the threat set around x.

        Args:
            model: the target, which is left alone, unless `with_target`.
            x: (N, C, H, W) in [0, 1].
            y: (N,) int64 labels.
        """
        return self.attack(self._crafted_on(model), x, y)

    def lacks(self, model: Classifier, x: Tensor) -> str | None:
        """Tell that there is no source, or what the attack does not find on the network that it is crafted on."""
        if self.source is None:
            return "no such surrogate is given"
        return super().lacks(self._crafted_on(model), x)

    def _crafted_on(self, model: Classifier) -> Classifier:
        if self.source is None:
            raise ValueError("there is no source to craft on: give one, or leave this attack out")
        return _MeanLogits(self.source, model) if self.with_target else self.source


class _MeanLogits(nn.Module):
    """The mean of two networks' logits; a module, so that crafting finds theirs."""

    def __init__(self, source: Classifier, target: Classifier) -> None:
        super().__init__()
        self.source, self.target = source, target

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, K)."""
        return (self.source(x) + self.target(x)) / 2

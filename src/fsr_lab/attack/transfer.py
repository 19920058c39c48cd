"""Transfer: craft on one network what another is judged on."""

from dataclasses import dataclass

from torch import Tensor, nn

from fsr_lab.attack.wrapper import Wrapper
from fsr_lab.core.hashing import state_hash
from fsr_lab.core.passes import Passes
from fsr_lab.core.types import Classifier


@dataclass(frozen=True, kw_only=True)
class Transfer(Wrapper):
    """An attack carried out on a source network; the attacked one is never asked.

    So it costs the target no pass, and no defence of the target can mislead it: where it does better than attacks that
    see the target, those were misled. The source stays where it is: put it on the images' device.

    Attributes:
        source: (N, C, H, W) in [0, 1] to logits (N, K), of the target's classes; eval mode while it is attacked.
        attack: what is run on it.
        label: what a record calls the source; its weights' hash follows it.

    Raises:
        ValueError: no source.
    """

    source: Classifier
    label: str = ""

    def __post_init__(self) -> None:
        if not callable(self.source):
            raise ValueError(
                f"a transfer attack crafts on another network, got {self.source}; give surrogate=RUN, a run such as of "
                "fsr train model=resnet50 strategy=natural defense=none on the same dataset, or a file of weights"
            )

    def __repr__(self) -> str:
        """Tell the settings, the source by its label and weights: the same text in every process."""
        label = self.label or type(self.source).__name__
        weights = f", weights {state_hash(self.source.state_dict())}" if isinstance(self.source, nn.Module) else ""
        return f"Transfer(source=<{label}{weights}>, attack={self.attack!r})"

    @property
    def exact_on_linear(self) -> bool:
        """Never: the worst point of the source need not be the target's."""
        return False

    def passes(self, num_classes: int) -> Passes:
        """Return none of the target's, and the most of a sample through the source; see `Budgeted`."""
        forwards, gradients, elsewhere = self.attack.passes(num_classes)
        return Passes(0, 0, (forwards + elsewhere[0], gradients + elsewhere[1]))

    def __call__(self, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        """Return x_adv (N, C, H, W), detached, in the threat set around x.

        Args:
            model: the target, which is left alone.
            x: (N, C, H, W) in [0, 1].
            y: (N,) int64 labels.
        """
        return self.attack(self.source, x, y)

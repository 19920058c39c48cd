"""The honest unit of cost: images that went forwards through the model, and images whose gradient was taken."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from fsr_lab.core.types import Classifier, Forward


class Counted(nn.Module):
    """A model that counts; everything else about it is the model's own.

    Attributes:
        forwards: images passed forwards since the last `reset`.
        backwards: images whose input gradient was taken.
    """

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model
        self.reset()

    def reset(self) -> None:
        """Start from nought."""
        self.forwards = self.backwards = 0

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits, as the model does."""
        logits: Tensor = self._count(x, self.model)
        return logits

    def forward_with_aux(self, x: Tensor, targets: Tensor | None = None) -> Forward:
        """Return the model's logits and auxiliary tensors."""
        inner: Callable[..., Forward] = self.model.forward_with_aux  # type: ignore[attr-defined]
        result: Forward = self._count(x, lambda images: inner(images, targets))
        return result

    def __getattr__(self, name: str) -> Any:
        """Find what a wrapper lacks, such as `routed` or `attack_terms`, on the model itself."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":
                raise
            return getattr(self.model, name)

    def _count(self, x: Tensor, call: Callable[[Tensor], Any]) -> Any:
        self.forwards += len(x)
        if x.requires_grad:
            x.register_hook(self._count_backward)
        return call(x)

    def _count_backward(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)

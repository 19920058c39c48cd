"""The honest unit of cost: images that went forwards through the model, and images whose gradient was taken."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fsr_lab.core.route import Route
from fsr_lab.core.types import Classifier, Forward


@dataclass
class Count:
    """Images forwards and backwards."""

    forwards: int = 0
    backwards: int = 0


class Counted(nn.Module):
    """A model that counts; everything else about it is the model's own.

    Args:
        model: what is counted.
        count: the counters, where several views of a model share them.
    """

    def __init__(self, model: Classifier, count: "Count | None" = None) -> None:
        super().__init__()
        self.model = model
        self.count = count or Count()

    def reset(self) -> None:
        """Start from nought."""
        self.count.forwards = self.count.backwards = 0

    @property
    def forwards(self) -> int:
        """Images passed forwards since the last `reset`."""
        return self.count.forwards

    @property
    def backwards(self) -> int:
        """Images whose input gradient was taken since the last `reset`."""
        return self.count.backwards

    def routed(self, route: Mapping[str, Route]) -> "Counted":
        """Return the model's view along a route, with the same counters."""
        return Counted(self.model.routed(route), self.count)  # type: ignore[attr-defined]

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
        """Find what a wrapper lacks, such as `attack_terms`, on the model itself."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":
                raise
            return getattr(self.model, name)

    def _count(self, x: Tensor, call: Callable[[Tensor], Any]) -> Any:
        self.count.forwards += len(x)
        if x.requires_grad and torch.is_grad_enabled():
            x = x.view_as(x)  # of this call alone: hooks on an image that is shown again would count again
            x.register_hook(self._count_backward)
        return call(x)

    def _count_backward(self, gradient: Tensor) -> None:
        self.count.backwards += len(gradient)

"""The attacked model under watch: what an attack learns of its iterates without asking twice."""

from typing import Any

import torch
from torch import Tensor

from fsr_lab.core.types import Classifier, Forward


class Watched:
    """A model whose latest images and logits are kept; everything else about it is the model's own.

    Args:
        model: maps images to logits.
    """

    def __init__(self, model: Classifier) -> None:
        self.model: Any = model
        self.seen: Tensor | None = None
        self.logits = torch.empty(0)

    def __call__(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, K), as the model does."""
        logits: Tensor = self.model(x)
        self.seen, self.logits = x, logits.detach()
        return logits

    def forward_with_aux(self, x: Tensor, targets: Tensor | None = None) -> Forward:
        """Return the model's logits and auxiliary tensors."""
        forward: Forward = self.model.forward_with_aux(x, targets)
        self.seen, self.logits = x, forward.logits.detach()
        return forward

    def logits_on(self, x: Tensor) -> Tensor:
        """Return the logits on these very images, (N, K), detached: of the latest pass, or of one more.

        One more it takes where the latest pass saw something else, such as the images resized.
        """
        if self.seen is not x:
            with torch.no_grad():
                self(x)
        return self.logits

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

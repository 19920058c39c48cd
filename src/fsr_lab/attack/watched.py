"""The attacked model under watch: what an attack learns of its iterates without asking twice."""

from typing import Any

import torch
from torch import Tensor

from fsr_lab.core.types import Classifier, Forward


class Watched:
    """A model whose latest images and logits are kept; everything else about it is the model's own.

    Args:
        model: maps images to logits.
        with_aux: let every pass of a model that files auxiliary tensors file them, so that one serves all objectives
            until `forget`.
        known: images (N, C, H, W) and their logits (N, K), which are then not computed again.
    """

    def __init__(
        self, model: Classifier, *, with_aux: bool = False, known: tuple[Tensor, Tensor] | None = None
    ) -> None:
        self.model: Any = model
        self.with_aux = with_aux and hasattr(model, "forward_with_aux")
        self.seen: Tensor | None = None
        self.logits = torch.empty(0)
        self._forward: Forward | None = None
        self._known = known

    def __call__(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, K), as the model does."""
        if self._known is not None and x is self._known[0]:
            return self._known[1]
        if self.with_aux:
            return self.forward_with_aux(x).logits
        logits: Tensor = self.model(x)
        self.seen, self.logits = x, logits.detach()
        return logits

    def forward_with_aux(self, x: Tensor, targets: Tensor | None = None) -> Forward:
        """Return the model's logits and auxiliary tensors: of the latest pass, if it was of this very `x`."""
        if self._forward is None or self.seen is not x:
            forward: Forward = self.model.forward_with_aux(x, targets)
            self.seen, self.logits, self._forward = x, forward.logits.detach(), forward
        return self._forward

    def forget(self) -> None:
        """Let go of the latest pass and its graph: the next one is computed, and draws, anew."""
        self._forward = None

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

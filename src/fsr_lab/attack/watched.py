"""The attacked model under watch: what an attack learns of its iterates without asking twice."""

from typing import Any

import torch
from torch import Tensor

from fsr_lab.core.types import Classifier, Forward, Objective, View


class Watched:
    """A model whose latest images and logits are kept; everything else about it is the model's own.

    For one attack call, in which the weights stay: a view of the model is made once and watched as well.

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
        self._given = known
        self._views: list[tuple[View, Watched]] = []

    def __call__(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, K), as the model does."""
        if self._given is not None and x is self._given[0]:
            return self._given[1]
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

    def through(self, view: View) -> "Watched":
        """Return a view of the model, watched too; of one view always the same."""
        for known, watched in self._views:
            if known is view:
                return watched
        self._views.append((view, Watched(view(self.model), with_aux=self.with_aux)))
        return self._views[-1][1]

    def forget(self) -> None:
        """Let go of the latest pass and its graph: the next one is computed, and draws, anew."""
        self._forward = None
        for _, watched in self._views:
            watched.forget()

    def logits_on(self, x: Tensor) -> Tensor:
        """Return the logits on these very images, (N, K), detached: of the latest pass, or of one more.

        One more it takes where the latest pass saw something else, such as the images resized, and no view with the
        model's own values saw them.
        """
        known = self._known(x)
        if known is None:
            with torch.no_grad():
                self(x)
            known = self.logits
        return known

    def _known(self, x: Tensor) -> Tensor | None:
        if self.seen is x:
            return self.logits
        found = (watched._known(x) for view, watched in self._views if view.keeps_values)
        return next((logits for logits in found if logits is not None), None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


def watched(model: Classifier, objective: Objective) -> Watched:
    """Return a model under watch as an objective wants it, with auxiliary tensors where that reads them."""
    return Watched(model, with_aux=reads_aux(objective))


def reads_aux(objective: Objective) -> bool:
    """Tell whether an objective reads auxiliary tensors, so that one pass with them serves all of its parts."""
    return bool(getattr(objective, "reads_aux", False))

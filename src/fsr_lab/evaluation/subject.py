"""A network under examination: what it was before, the passes that several checks share, and its way back."""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from fsr_lab.attack.pgd import PGD
from fsr_lab.core.crafting import crafting
from fsr_lab.core.losses import cross_entropy, margin
from fsr_lab.core.threat import Threat
from fsr_lab.core.types import Classifier

STEPS = (2, 5, 10)
"""After how many steps PGD is looked at; ten of a quarter of eps each reach any corner of the ball twice over."""
LONG = (1, 10, 100, 1000)
"""After how many steps of a tenth of eps it is looked at by a deep examination."""
FEW = 16
"""How many images are attacked for so long."""


class Standing(NamedTuple):
    """Where a set of images stands under an attack: mean cross-entropy in nats, and accuracy."""

    loss: float
    accuracy: float


class Subject:
    """A network, a few images, and what is known of both so far; each pass is made when a check first asks for it.

    Attributes:
        model: any callable; in eval mode by the time its passes are made.
        x: (N, C, H, W).
        y: (N,) int64.
        threat: the set of perturbations.
        layers: of an `nn.Module`, the modules that hold no other.
        modules: of an `nn.Module`, all of them, itself among them.
        in_training: how many of these were in training mode when the examination began.
        draws_noise: whether the network declares to be random at test time (`eval_noise`, as SAP does).
        commonest: share of the images that are of the commonest label.
    """

    def __init__(self, model: Classifier, x: Tensor, y: Tensor, threat: Threat) -> None:
        self.model, self.x, self.y, self.threat = model, x, y, threat
        self.modules = list(model.modules()) if isinstance(model, nn.Module) else []
        self.layers = [module for module in self.modules if next(module.children(), None) is None]
        self.in_training = sum(layer.training for layer in self.layers)
        self.draws_noise = any(getattr(part, "eval_noise", False) for part in (model, *self.modules))
        self._buffers = [
            (module, name, buffer, buffer.detach().clone())
            for module in self.modules
            for name, buffer in module.named_buffers(recurse=False)
        ]

    @property
    def commonest(self) -> float:
        return float(self.y.bincount().max()) / len(self.y)

    @cached_property
    def output(self) -> object:
        """What the model returns for the images: logits, one hopes."""
        return self.forward(self.x)

    @property
    def logits(self) -> Tensor:
        """The output, once it is known to be one finite tensor (N, K)."""
        return cast(Tensor, self.output)

    @cached_property
    def clean(self) -> float:
        """Accuracy on the images as they are."""
        return _share_right(self.logits, self.y)

    @cached_property
    def fgsm(self) -> float:
        """Accuracy under one step of eps."""
        return self.accuracy(_pgd(self.threat, steps=1, relative_step=1)(self.model, self.x, self.y))

    @cached_property
    def climb(self) -> Mapping[int, float]:
        """Accuracy after each of `STEPS` steps of PGD."""
        return {steps: self.accuracy(self._iterates[steps]) for steps in STEPS}

    @property
    def adversarial(self) -> Tensor:
        """The images after the most of `STEPS` steps of PGD."""
        return self._iterates[max(STEPS)]

    @cached_property
    def long_climb(self) -> Mapping[int, Standing]:
        """Where the first `FEW` images stand as they are, at 0, and after each of `LONG` steps of PGD."""
        x, y = self.x[:FEW], self.y[:FEW]
        found = _pgd(self.threat, steps=max(LONG), relative_step=0.1).iterates(self.model, x, y, at=LONG)
        standings = {}
        for steps, images in ({0: x} | dict(found)).items():
            logits = self.forward(images)
            standings[steps] = Standing(float(cross_entropy(logits, y).mean()), _share_right(logits, y))
        return standings

    @property
    def withstood(self) -> tuple[float, float] | None:
        """Accuracy on the images as they are and after the most steps of PGD; None where no check asked for both."""
        return (self.clean, self.climb[max(STEPS)]) if {"clean", "climb"} <= vars(self).keys() else None

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits without gradients."""
        with torch.no_grad():
            return self.model(x)

    def accuracy(self, x: Tensor) -> float:
        """Return the share of images that are classified right."""
        return _share_right(self.forward(x), self.y)

    def under_pgd(self, eps: float, *, steps: int = max(STEPS), relative_step: float = 0.25) -> float:
        """Return the accuracy under PGD with another radius."""
        threat = Threat(norm=self.threat.norm, eps=eps)
        return self.accuracy(_pgd(threat, steps=steps, relative_step=relative_step)(self.model, self.x, self.y))

    def input_gradient(self, loss: Callable[[Tensor, Tensor], Tensor], view: Classifier | None = None) -> Tensor:
        """Return (N, C H W) the gradient of each sample's loss at its image, in the images' own precision.

        Args:
            loss: (logits, y) to (N,).
            view: of the model, along another route; None is the model itself.

        Raises:
            RuntimeError: no gradient reaches the images.
        """
        x = self.x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss((view or self.model)(x), self.y).sum(), x)
        return gradient.flatten(1)

    def changed_buffers(self) -> list[str]:
        """Return the names of the buffers that are no longer what they were."""
        return [
            f"{type(module).__name__}.{name}"
            for module, name, _, before in self._buffers
            if not torch.equal(getattr(module, name), before)
        ]

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Put the model into eval mode and draw from a fixed seed; everything is put back on exit.

        What a callable that is no module hides cannot be put back.
        """
        python, arrays = random.getstate(), np.random.get_state()
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())), crafting(self.model):
            torch.manual_seed(0)
            random.seed(0)
            np.random.seed(0)
            # clones: inference tensors cannot enter autograd
            self.x, self.y = self.x.detach().clone(), self.y.clone()
            try:
                yield
            finally:
                random.setstate(python)
                np.random.set_state(arrays)
                for module, name, buffer, before in self._buffers:
                    if not torch.equal(buffer, before):
                        with torch.no_grad():
                            buffer.copy_(before)
                    setattr(module, name, buffer)

    @cached_property
    def _iterates(self) -> Mapping[int, Tensor]:
        return _pgd(self.threat).iterates(self.model, self.x, self.y, at=STEPS)


def _share_right(logits: Tensor, y: Tensor) -> float:
    return float((margin(logits, y) > 0).float().mean())


def _pgd(threat: Threat, steps: int = max(STEPS), relative_step: float = 0.25) -> PGD:
    return PGD(threat=threat, steps=steps, relative_step=relative_step, random_start=False)

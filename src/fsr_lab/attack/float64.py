"""The view of a network computed in float64."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor

from fsr_lab.core.route import Route
from fsr_lab.core.types import Classifier, Forward

FAINTEST = 1e-30
"""What the largest entry of a fainter gradient is raised to: float32 then holds all down to a 1e-8th of it."""


@dataclass(frozen=True)
class Float64:
    """Computes a network in float64, for gradients that are exactly zero in float32 alone.

    Weights are those that the network has when it is looked at, so that a policy's rounding stays in them: the
    reference policy rounds nothing. Gradients come back in the images' own type; a sample's whose every entry is too
    small for float32 is scaled up to `FAINTEST`, so that its direction is not lost with its size.

    Raises:
        ValueError: when called, a network that shows no weights.
    """

    is_random: ClassVar[bool] = False
    keeps_values: ClassVar[bool] = False

    def __call__(self, model: Classifier) -> Classifier:
        """Return the view, which holds the weights in float64; a change to the network's needs another one."""
        lack = self._lack(model)
        if lack is not None:
            raise ValueError(lack)
        return _InFloat64(model, _doubled(model))

    def lacks(self, model: Classifier, x: Tensor) -> str | None:
        """Tell that a network shows no weights, if it does not."""
        return self._lack(model)

    def _lack(self, model: Any) -> str | None:
        shows_weights = hasattr(model, "parameters") and any(True for _ in model.parameters())
        return None if shows_weights else "the network shows no weights that could be computed with in float64"


class _Place(NamedTuple):
    """Where weights or buffers of a module lie, and what lies there for a float64 pass."""

    own: dict[str, Tensor | None]
    doubled: Mapping[str, Tensor | None]


class _InFloat64:
    """A network that computes with other weights while it is called; everything else about it is its own."""

    def __init__(self, model: Classifier, places: Sequence[_Place]) -> None:
        self.model: Any = model
        self.places = places

    def __call__(self, x: Tensor) -> Tensor:
        return cast(Tensor, self._run(self.model, x))

    def forward_with_aux(self, x: Tensor, targets: Tensor | None = None) -> Forward:
        return cast(Forward, self._run(self.model.forward_with_aux, x, targets))

    def routed(self, route: Mapping[str, Route]) -> "_InFloat64":
        return _InFloat64(self.model.routed(route), self.places)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def _run(self, call: Callable[..., Any], x: Tensor, *others: Any) -> Any:
        wide = x.double()
        if wide is not x and wide.requires_grad:
            wide.register_hook(_audible)
        with _laid_over(self.places):
            return call(wide, *others)


def _doubled(model: Any) -> list[_Place]:
    """Return all places of a network that hold weights or buffers; what is no floating-point number stays."""
    return [
        _Place(own, {name: value if value is None else _double(value) for name, value in own.items()})
        for module in model.modules()
        for own in (module._parameters, module._buffers)
        if own
    ]


def _double(value: Tensor) -> Tensor:
    if not value.is_floating_point():
        return value.clone()
    doubled = value.detach().double()
    return torch.nn.Parameter(doubled, requires_grad=False) if isinstance(value, torch.nn.Parameter) else doubled


def _audible(gradient: Tensor) -> Tensor:
    """Return a float64 gradient (N, ...), of each sample such as float32 can hold it."""
    size = gradient.flatten(1).abs().amax(1).reshape(-1, *[1] * (gradient.ndim - 1))
    return torch.where((size > 0) & (size < FAINTEST), gradient * (FAINTEST / size), gradient)


@contextmanager
def _laid_over(places: Sequence[_Place]) -> Iterator[None]:
    """Put the float64 tensors in the place of a network's own, which are back on exit, the same objects.

    Not a copy of the network in float64: a wrapper that counts passes must see these too.
    """
    before = [dict(own) for own, _ in places]
    try:
        for own, doubled in places:
            own.update(doubled)
        yield
    finally:
        for (own, _), originals in zip(places, before, strict=True):
            own.update(originals)

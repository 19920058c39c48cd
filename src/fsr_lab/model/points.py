"""Points: where in a network a defence sits, by the dotted name of a module.

"layer4" is its output, "avgpool:in" its input, "relu3:instead" replaces the module.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from fsr_lab.core.suggest import unknown
from fsr_lab.core.types import FeatureShape

PLACES = ("out", "in", "instead")

M = TypeVar("M", bound=nn.Module)


class Point(NamedTuple):
    """A module's dotted name and the place at it: "out", "in" or "instead"."""

    module: str
    place: str


def parse_point(point: str) -> Point:
    """Split "layer4.1:in" into module and place.

    Raises:
        ValueError: the place is not "in" or "instead".
    """
    module, colon, place = point.partition(":")
    if colon and place not in PLACES[1:]:
        raise ValueError(f"{unknown('place', place, PLACES[1:])}, in point {point!r}")
    return Point(module, place or "out")


def find_module(backbone: nn.Module, point: str) -> nn.Module:
    """Return the module that a point names.

    Raises:
        ValueError: there is none; the message names its neighbours.
    """
    modules: dict[str, nn.Module] = dict(backbone.named_modules())
    modules.pop("")
    name = parse_point(point).module
    if name not in modules:
        raise ValueError(unknown("layer", name, modules).replace(";", f" in {type(backbone).__name__};", 1))
    return modules[name]


def inspect_points(
    backbone: nn.Module, points: Sequence[str], image_shape: tuple[int, int, int], num_classes: int | None = None
) -> dict[str, FeatureShape]:
    """Return the shape of the activation at each point, from one forward on a meta-device twin: no compute.

    Args:
        backbone: maps (N, *image_shape) to logits.
        points: see the module's docstring.
        image_shape: (C, H, W).
        num_classes: K; None leaves the logits unchecked.

    Raises:
        ValueError: a point names no module, its module does not run exactly once per forward, its activation is
            not (N, C, H, W), the network does not take images of this shape, or does not give K logits.
    """
    twin = meta_twin(backbone).eval()
    seen: dict[str, list[Any]] = {point: [] for point in points}
    for point in points:
        find_module(twin, point).register_forward_hook(_watch(seen[point], parse_point(point).place))
    try:
        with torch.no_grad():
            logits = twin(torch.empty(2, *image_shape, device="meta"))
    except (RuntimeError, ValueError) as err:
        raise ValueError(
            f"{type(backbone).__name__} does not take images of shape {tuple(image_shape)}: {_first_line(err)}; "
            "set image_shape, and the model's in_channels, to the data's (C, H, W)"
        ) from err
    found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if num_classes is not None and found != (2, num_classes):
        raise ValueError(
            f"expected {type(backbone).__name__} to map 2 images to logits (2, {num_classes}), got {found}; "
            "set the model's num_classes to the data's"
        )
    return {point: _shape(point, seen[point]) for point in points}


def _watch(into: list[Any], place: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        into.append(output if place == "out" else inputs[0])

    return hook


def _shape(point: str, values: list[Any]) -> FeatureShape:
    if len(values) != 1:
        raise ValueError(
            f"expected the module at {point!r} to run once per forward, got {len(values)} runs; "
            "tap a module that runs once, such as the block around it"
        )
    value = values[0]
    if not isinstance(value, Tensor) or value.ndim != 4:
        found = tuple(value.shape)[1:] if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"expected {point!r} to give a (C, H, W) activation, got {found}; tap an earlier layer")
    return FeatureShape(*value.shape[1:])


def meta_twin(network: M) -> M:
    """Copy a network's structure with its tensors on the meta device; no weight is copied."""
    memo: dict[int, Any] = {}
    for tensor in (*network.parameters(), *network.buffers()):
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(network, memo)


def _first_line(err: Exception) -> str:
    return str(err).partition("\n")[0]

"""Points: where in a network a defence sits, by the dotted name of a module.

"layer4" is its output, "avgpool:in" its input, "relu3:instead" replaces the module.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from fsr_lab.core.suggest import close_names, unknown
from fsr_lab.core.types import FeatureShape
from fsr_lab.model.layout import Layout, recognise

PLACES = ("out", "in", "instead")
ACTIVATIONS = ("relu", "act", "gelu", "silu")
"""What modules of activation functions are called; many networks call the function and have no such module."""

UNFIT = (RuntimeError, ValueError, AssertionError, TypeError, IndexError)
"""What networks raise at images that they cannot take."""

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
        near = close_names(name, sorted(modules))
        hint = f"close names: {near}" if near else f"its parts are: {[part for part, _ in backbone.named_children()]}"
        if name.rpartition(".")[2].startswith(ACTIVATIONS):
            hint += "; where a network calls the function, F.relu, tap the input of the next module: NAME:in"
        raise ValueError(f"no layer named {name!r} in {type(backbone).__name__}; {hint}")
    return modules[name]


def inspect_points(
    backbone: nn.Module,
    points: Sequence[str],
    image_shape: tuple[int, int, int],
    num_classes: int | None = None,
    layout: Layout = Layout(),
) -> dict[str, FeatureShape]:
    """Return the shape of the feature map at each point, from one forward on a meta-device twin: no compute.

    A second forward, of higher images, tells the height's axis where the shapes alone do not.

    Args:
        backbone: maps (N, *image_shape) to logits.
        points: see the module's docstring.
        image_shape: (C, H, W).
        num_classes: K; None leaves the logits unchecked.
        layout: of the activations at the points.

    Raises:
        ValueError: a point names no module, its module does not run exactly once per forward, its activation is no
            feature map in this layout, the network does not take images of this shape, or does not give K logits.
    """
    twin = meta_twin(backbone).eval()
    seen: dict[str, list[Any]] = {point: [] for point in points}
    _refuse_replacing_weights(twin, points)
    for point in points:
        find_module(twin, point).register_forward_hook(_watch(seen[point], parse_point(point).place))
    try:
        logits = _run(twin, image_shape)
    except UNFIT as err:
        raise ValueError(
            f"{type(backbone).__name__} does not take images of shape {tuple(image_shape)}: {_first_line(err)}; "
            "set image_shape, and the model's in_channels, to the data's (C, H, W); networks of one size take it from "
            f"model.options, as {{img_size: {image_shape[1]}}} (timm) or {{image_size: {image_shape[1]}}} (torchvision)"
        ) from err
    found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if num_classes is not None and found != (2, num_classes):
        raise ValueError(
            f"expected {type(backbone).__name__} to map 2 images to logits (2, {num_classes}), got {found}; "
            "set the model's num_classes to the data's"
        )
    activations = {point: _activation(point, seen[point], layout) for point in points}
    if layout.order != "nlc":
        _check_axes(twin, activations, seen, image_shape, layout)
    return {point: _shape(backbone, point, activation, layout) for point, activation in activations.items()}


def feature_points(backbone: nn.Module, image_shape: tuple[int, int, int], *, count: int = 6) -> list[str]:
    """Return names of layers that a defence may sit at: the last `count` blocks, or parts of them, with a map.

    Empty if the network does not take images of this shape.
    """
    twin = meta_twin(backbone).eval()
    ran: list[str] = []
    for name, module in twin.named_modules():
        if name and name.count(".") < 2:
            module.register_forward_hook(_note(ran, name))
    try:
        _run(twin, image_shape)
    except UNFIT:
        return []
    return [name for name in ran if ran.count(name) == 1][-count:]


def activation_layers(backbone: nn.Module, *, count: int = 6) -> list[str]:
    """Return names of the last `count` activations, such as ReLU, which a defence may take the place of."""
    names = [name for name, part in backbone.named_modules() if type(part).__module__ == nn.ReLU.__module__]
    return names[-count:]


def _refuse_replacing_weights(backbone: nn.Module, points: Sequence[str]) -> None:
    for point in points:
        module = find_module(backbone, point)
        if parse_point(point).place == "instead" and any(True for _ in module.parameters()):
            raise ValueError(
                f"expected a layer without weights at {point!r}, whose place is taken, got {type(module).__name__}; "
                f"give an activation, such as one of {activation_layers(backbone)}"
            )


def _run(twin: nn.Module, image_shape: tuple[int, int, int]) -> Any:
    with torch.no_grad():
        return twin(torch.empty(2, *image_shape, device="meta"))


def _watch(into: list[Any], place: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        into.append(output if place == "out" else inputs[0])

    return hook


def _note(into: list[str], name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            into.append(name)

    return hook


def _activation(point: str, values: list[Any], layout: Layout) -> Tensor:
    """Return the one activation seen at a point, refusing what has not the axes of the layout."""
    if len(values) != 1:
        parent = parse_point(point).module.rpartition(".")[0]
        around = f"such as the block around it{f', {parent!r}' if parent else ''}, " if values else ""
        raise ValueError(
            f"expected the module at {point!r} to run once per forward, got {len(values)} runs; "
            f"tap a module that runs once, {around}or the input of the next one: NAME:in"
        )
    value = values[0]
    wanted = "(L, C)" if layout.order == "nlc" else "(C, H, W)" if layout.order == "nchw" else "(H, W, C)"
    if isinstance(value, Tensor) and value.ndim == (3 if layout.order == "nlc" else 4):
        return value
    found = tuple(value.shape)[1:] if isinstance(value, Tensor) else type(value).__name__
    cure = "set layout=nlc for tokens, or tap" if isinstance(value, Tensor) and value.ndim == 3 else "tap"
    raise ValueError(f"expected {point!r} to give a {wanted} activation, got {found}; {cure} an earlier layer")


def _check_axes(
    twin: nn.Module,
    activations: dict[str, Tensor],
    seen: dict[str, list[Any]],
    image_shape: tuple[int, int, int],
    layout: Layout,
) -> None:
    """Refuse activations whose channels are not where the layout says; rank alone cannot tell them."""
    channels, height, width = image_shape
    shapes = {point: tuple(activation.shape)[1:] for point, activation in activations.items()}
    higher: dict[str, tuple[int, ...] | None] = dict.fromkeys(shapes)
    if any(not (height == width and shape[1] == shape[2] != shape[0]) for shape in shapes.values()):
        try:
            _run(twin, (channels, 2 * height, width))
            higher = {point: tuple(seen[point][-1].shape)[1:] for point in shapes}
        except UNFIT:
            pass  # a network of one image size
    for point, shape in shapes.items():
        told = recognise(shape, higher[point], is_square=height == width)
        if told is not None and told != layout.order:
            where = "first" if told == "nchw" else "last"
            raise ValueError(
                f"expected {point!r} to give an activation laid out as {layout.order}, got {shape} with the channels "
                f"{where}; set layout={told}"
            )


def _shape(backbone: nn.Module, point: str, activation: Tensor, layout: Layout) -> FeatureShape:
    try:
        shape = FeatureShape(*layout.to_map(activation).shape[1:])
    except ValueError as err:
        raise ValueError(f"expected {point!r} to give a grid of tokens, got {err}") from err
    declared = {f"{info['module']}": info["num_chs"] for info in feature_info(backbone)}.get(point)
    if declared not in (None, shape.channels):
        raise ValueError(
            f"expected {point!r} to give {declared} channels, as {type(backbone).__name__} declares, got "
            f"{tuple(activation.shape)[1:]}; set layout to where they are: nhwc or nlc"
        )
    return shape


def feature_info(backbone: nn.Module) -> list[dict[str, Any]]:
    """Return what a timm network declares of its stages, first to last; empty for any other network."""
    declared = getattr(backbone, "feature_info", None)
    if not isinstance(declared, list):
        return []
    return [dict(info) for info in declared if isinstance(info, dict) and {"module", "num_chs"} <= set(info)]


def meta_twin(network: M) -> M:
    """Copy a network's structure with its tensors on the meta device; no weight is copied."""
    memo: dict[int, Any] = {}
    for tensor in (*network.parameters(), *network.buffers()):
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(network, memo)


def _first_line(err: Exception) -> str:
    return str(err).partition("\n")[0]

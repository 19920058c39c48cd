"""A backbone with feature defences at named points, which still maps images to logits and nothing else."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fsr_lab.core.defense import FeatureDefense
from fsr_lab.core.route import Route
from fsr_lab.core.suggest import unknown
from fsr_lab.core.types import Criterion, DefenseOutput, FeatureShape, Forward, SampleLoss
from fsr_lab.model import tape
from fsr_lab.model.layout import Layout, layout_of
from fsr_lab.model.points import find_module, inspect_points, parse_point


class DefenseBuilder(Protocol):
    """What a config's partial is: it learns the feature's shape and the number of classes, and builds."""

    def __call__(self, *, shape: FeatureShape, num_classes: int) -> FeatureDefense: ...


def attach(
    backbone: nn.Module,
    defenses: Mapping[str, DefenseBuilder],
    image_shape: tuple[int, int, int] = (3, 32, 32),
    num_classes: int = 10,
    layout: str = "nchw",
) -> "DefendedModel":
    """Put feature defences into a network, at points given by name; their sizes are found, never typed.

    The backbone's code and state-dict keys stay as they are. A backbone with a method `initialize(module)`, one module
    at a time, initialises the defences that follow it, as the released VGG and WideResNet do.

    Args:
        backbone: any network from images to logits.
        defenses: {point: builder}, such as `{"layer4": FSR}` or `{"layer4": functools.partial(FSR, tau=0.1)}`.
        image_shape: (C, H, W) of the images.
        num_classes: K.
        layout: of the network's activations at the points: "nchw", "nhwc" (Swin) or "nlc" (tokens).

    Raises:
        ValueError: see `inspect_points`.
        RuntimeError: the backbone carries defences already.

    Example:
        >>> model = attach(torchvision.models.resnet18(num_classes=10), {"layer4": FSR})
    """
    _refuse_tapped(backbone)  # before it is copied for inspection, taps and all
    axes = layout_of(backbone, layout)
    shapes = inspect_points(backbone, list(defenses), image_shape, num_classes, axes)
    built = {point: build(shape=shapes[point], num_classes=num_classes) for point, build in defenses.items()}
    initialize = getattr(backbone, "initialize", None)
    for defense in built.values():
        if initialize is not None and defense.follows_backbone_init:
            defense.apply(initialize)
    return DefendedModel(backbone, built, axes)


class DefendedModel(nn.Module):
    """Owns a backbone and the defences at its points.

    `forward` gives logits, full stop. Auxiliary tensors leave by `forward_with_aux`, which returns what the taps
    filed during that one pass. Not for `nn.DataParallel`; use DDP. Compile in place with `model.compile()`.

    Args:
        backbone: maps (N, C, H, W) in [0, 1] to logits (N, K).
        defenses: {point: module}.
        layout: of the activations at the points.

    Raises:
        RuntimeError: the backbone carries defences of another model already.
    """

    def __init__(self, backbone: nn.Module, defenses: Mapping[str, FeatureDefense], layout: Layout = Layout()) -> None:
        super().__init__()
        _refuse_tapped(backbone)
        self.backbone = backbone
        self.taps = nn.ModuleDict()
        self._points = tuple(defenses)
        for point, defense in defenses.items():
            tap = Tap(point, defense, layout)
            tap.put_on(find_module(backbone, point))
            self.taps[point.replace(".", "/")] = tap  # a module's name cannot hold a dot
        self._compiled: Callable[[Tensor], Tensor] | None = None

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile in place what crafting and training run, at any of their doors; arguments as for `torch.compile`.

        Where no gradient is wanted the network stays eager: a compiler's mistake cannot judge a robustness number.
        State-dict keys stay; a copy and a pickle are eager again.
        """
        self._compiled = torch.compile(self._run, *args, **kwargs)

    @property
    def defenses(self) -> dict[str, FeatureDefense]:
        """{point: defence}."""
        return {tap.point: tap.defense for tap in self._taps()}

    @property
    def has_attack_terms(self) -> bool:
        """Whether a defence adds to what crafting must raise."""
        return any(type(d).attack_terms is not FeatureDefense.attack_terms for d in self.defenses.values())

    @property
    def needs_clean(self) -> bool:
        """Whether a defence's auxiliary loss reads the forward on clean images."""
        return any(defense.needs_clean for defense in self.defenses.values())

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) in [0, 1] to logits (N, K)."""
        return self._logits(x)

    def forward_with_aux(self, x: Tensor, targets: Tensor | None = None) -> Forward:
        """Return logits and every defence's auxiliary tensors.

        Args:
            x: (N, C, H, W) in [0, 1].
            targets: (N,) labels, which label-conditioned defences use in training mode.
        """
        with tape.recording(tape.Tape(targets=targets)) as filed:
            logits = self._logits(x)
        return Forward(logits, filed.aux)

    def routed(self, route: Mapping[str, Route]) -> "Routed":
        """Return a light view of the same weights that runs defences differently.

        Raises:
            ValueError: no defence at that point, or one that does not know that route.
        """
        for point, way in route.items():
            if point not in self.defenses:
                raise ValueError(unknown("defended point", point, self.defenses))
            defense = self.defenses[point]
            if missing := way.uses - defense.routes:
                raise ValueError(
                    f"{type(defense).__name__} at {point!r} has no route {sorted(missing)}; "
                    f"it knows {sorted(defense.routes)}"
                )
        return Routed(self, route)

    def auxiliary_losses(
        self, adv: Forward, y: Tensor, *, clean: Forward | None = None, criterion: Criterion
    ) -> dict[str, Tensor]:
        """Return {"layer4/sep": …}: each defence's weighted terms over the number of sites of its class (Eq. 5)."""
        return {
            f"{point}/{name}": value / self._sites[type(defense)]
            for point, defense in self.defenses.items()
            for name, value in defense.auxiliary_loss(adv, y, point, clean=clean, criterion=criterion).items()
        }

    def attack_terms(self, adv: Forward, y: Tensor, *, clean: Forward | None, loss: SampleLoss) -> Tensor | None:
        """Return (N,) what crafting raises besides the logits' loss, meant over sites of one class; or None."""
        total: Tensor | None = None
        for point, defense in self.defenses.items():
            clean_aux = None if clean is None else clean.aux[point]
            term = defense.attack_terms(adv.aux[point], y, clean_aux, loss)
            if term is not None:
                term = term / self._sites[type(defense)]
                total = term if total is None else total + term
        return total

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return state | {"_compiled": None}

    def _logits(self, x: Tensor) -> Tensor:
        run = self._run if self._compiled is None or not torch.is_grad_enabled() else self._compiled
        return run(x)

    def _run(self, x: Tensor) -> Tensor:
        # Dynamo takes no notice of hooks when it asks whether a compiled graph fits; it does of what is read here.
        # Without it, a defended network ran the graph of an undefended one that was compiled before it
        assert "" not in self._points
        logits: Tensor = self.backbone(x)
        return logits

    @property
    def _sites(self) -> Counter[type[FeatureDefense]]:
        return Counter(type(defense) for defense in self.defenses.values())

    def _taps(self) -> list["Tap"]:
        return [tap for tap in self.taps.values() if isinstance(tap, Tap)]


class Routed(nn.Module):
    """A view of a defended model under a route: the same weights, another path through its defences.

    Everything else about it, such as `attack_terms`, is the model's own.
    """

    def __init__(self, model: DefendedModel, route: Mapping[str, Route]) -> None:
        super().__init__()
        self.model = model
        self.route = dict(route)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) in [0, 1] to logits (N, K) along the route."""
        with tape.recording(tape.Tape(route=self.route, want_aux=False)):
            return self.model._logits(x)

    def forward_with_aux(self, x: Tensor, targets: Tensor | None = None) -> Forward:
        """As `DefendedModel.forward_with_aux`, along the route."""
        with tape.recording(tape.Tape(targets=targets, route=self.route)) as filed:
            logits = self.model._logits(x)
        return Forward(logits, filed.aux)

    def routed(self, route: Mapping[str, Route]) -> "Routed":
        """Return the view with other routes at some points; see `DefendedModel.routed`."""
        return self.model.routed(self.route | dict(route))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":
                raise
            return getattr(self.model, name)


class Tap(nn.Module):
    """Adapts a defence to its place in the network, and what the network passes there to a feature map and back.

    The hooks are bound methods, never closures: `copy.deepcopy` and `pickle` rebind them to the copy, where a
    closure would go on calling the original's defence.
    """

    def __init__(self, point: str, defense: FeatureDefense, layout: Layout = Layout()) -> None:
        super().__init__()
        self.point = point
        self.defense = defense
        self.layout = layout

    def put_on(self, module: nn.Module) -> None:
        """Register at a module, at the place that the point names."""
        place = parse_point(self.point).place
        if place == "out":
            module.register_forward_hook(self.after)
        elif place == "in":
            module.register_forward_pre_hook(self.before)
        else:
            # not a hook: an in-place activation would have spoilt its own input by then
            module.forward = self.defend

    def after(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """Replace a module's output."""
        return self.defend(output)

    def before(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Replace a module's first input."""
        return (self.defend(inputs[0]), *inputs[1:])

    def defend(self, activation: Tensor) -> Tensor:
        """Run the defence as the open tape says, and file what it gives."""
        open_tape = tape.current()
        features = self.layout.to_map(activation)
        if open_tape is None:
            deployed: DefenseOutput = self.defense(features, want_aux=False)
            return self.layout.restore(deployed.features, activation)
        route = open_tape.route.get(self.point)
        output: DefenseOutput = self.defense(features, open_tape.targets, route=route, want_aux=open_tape.want_aux)
        if open_tape.want_aux:
            open_tape.aux[self.point] = output.aux
        return self.layout.restore(output.features, activation)


def _refuse_tapped(backbone: nn.Module) -> None:
    if any(_is_tapped(module) for module in backbone.modules()):
        raise RuntimeError(
            f"this {type(backbone).__name__} carries the defences of another model already; build a second backbone"
        )


def _is_tapped(module: nn.Module) -> bool:
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values(), vars(module).get("forward"))
    return any(isinstance(getattr(hook, "__self__", None), Tap) for hook in hooks)

"""The values and protocols through which the packages meet; none of them knows another."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn


class Classifier(Protocol):
    """What an attack may assume of a network, and nothing more."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """Map images (N, C, H, W) in [0, 1] to logits (N, K)."""
        ...


class FeatureShape(NamedTuple):
    """What a tap point carries, without the batch axis."""

    channels: int
    height: int
    width: int


class DefenseOutput(NamedTuple):
    """What a feature defence returns.

    Attributes:
        features: (N, C, H, W), replaces the tapped activation.
        aux: named tensors with the batch on axis 0; may be empty. Each defence documents its keys.
    """

    features: Tensor
    aux: Mapping[str, Tensor]


class Forward(NamedTuple):
    """Logits (N, K) and, per tap point in order of depth, the defence's auxiliary tensors."""

    logits: Tensor
    aux: Mapping[str, Mapping[str, Tensor]]

    def rows(self, keep: Tensor | slice) -> "Forward":
        """Return the part of the batch that a slice, an index or a boolean (N,) selects."""
        aux = {point: {key: value[keep] for key, value in named.items()} for point, named in self.aux.items()}
        return Forward(self.logits[keep], aux)


class Progress(NamedTuple):
    """Where training stands: curricula and warm-ups read it. `epoch` counts from 0."""

    epoch: int
    max_epochs: int
    step: int


class Crafted(NamedTuple):
    """One batch with the images to train on.

    Attributes:
        x: (N, C, H, W) clean images in [0, 1].
        x_adv: (N, C, H, W) what is trained on.
        y: (N,) int64 labels.
        attacked: (M,) indices of the samples that were attacked, where some were left clean (curricula); None is all.
    """

    x: Tensor
    x_adv: Tensor
    y: Tensor
    attacked: Tensor | None = None


class StepOutput(NamedTuple):
    """Result of a strategy on one batch.

    Attributes:
        losses: weighted scalars by name; the loss is their sum.
        logits: (N, K) on `x_adv`.
        x_adv: (N, C, H, W) the images trained on.
    """

    losses: dict[str, Tensor]
    logits: Tensor
    x_adv: Tensor


Criterion = Callable[[Tensor, Tensor | None, Tensor], dict[str, Tensor]]
"""(adversarial logits, clean logits or None, y) -> named weighted scalars."""


@runtime_checkable
class SampleLoss(Protocol):
    """What crafting raises, as a pure function of logits; `needs_clean` asks for the clean images' logits."""

    @property
    def needs_clean(self) -> bool: ...

    def __call__(self, logits: Tensor, y: Tensor, clean_logits: Tensor | None = None) -> Tensor:
        """Return (N,)."""
        ...


class TargetedLoss(Protocol):
    """What a targeted attack raises to turn a sample into its target class; a pure function of logits."""

    def __call__(self, logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
        """Return (N,) for the classes `target`, (N,) int64, aimed at."""
        ...


class Objective(Protocol):
    """A loss applied to a model; adaptive objectives look inside it."""

    @property
    def loss(self) -> SampleLoss | TargetedLoss: ...

    @property
    def is_random(self) -> bool:
        """Whether `prepare` draws random numbers."""
        ...

    def prepare(self, model: Classifier, x: Tensor, y: Tensor) -> Mapping[str, Tensor]:
        """Compute once per attack call, without gradients, what every step needs; batch on axis 0."""
        ...

    def __call__(self, model: Classifier, x_adv: Tensor, y: Tensor, prepared: Mapping[str, Tensor]) -> Tensor:
        """Return (N,), to be raised."""
        ...


@runtime_checkable
class Particular(Protocol):
    """An attack or objective that works on what not every network has: auxiliary tensors, routes, another network."""

    def lacks(self, model: Classifier, x: Tensor) -> str | None:
        """Tell in a few words what it does not find on a network, which may be shown x (N, C, H, W); None: nothing."""
        ...


@runtime_checkable
class Aimed(Protocol):
    """An objective that leads to one wrong class."""

    def aimed(self, target: "Target") -> "Objective":
        """Return the objective, leading to another target."""
        ...


class Target(Protocol):
    """Chooses a wrong class for each sample, once per attack call."""

    @property
    def is_random(self) -> bool: ...

    def __call__(self, clean_logits: Tensor, y: Tensor) -> Tensor:
        """Return (N,) int64, nowhere y, from the clean images' logits (N, K) and labels (N,)."""
        ...


class View(Protocol):
    """Another function of the same weights, which an attack may climb in a network's place."""

    @property
    def is_random(self) -> bool: ...

    @property
    def keeps_values(self) -> bool:
        """Whether its logits are the network's own, bit for bit, so that gradients alone differ."""
        ...

    def __call__(self, model: Classifier) -> Classifier:
        """Return the view of a network; the network stays as it is."""
        ...

    def lacks(self, model: Classifier, x: Tensor) -> str | None: ...


class Attack(Protocol):
    """A value that is called: finds x_adv (N, C, H, W), detached and inside the threat set.

    An attack of ours also tells `is_random`, whether it draws random numbers, and `exact_on_linear`, whether it
    reaches the worst point of a linear model of two classes; one that searches by queries has a budget `queries`.
    """

    def __call__(self, model: Classifier, x: Tensor, y: Tensor) -> Tensor: ...


@runtime_checkable
class SharesPath(Protocol):
    """An attack whose run passes by the results of others: PGD-100's passes by PGD-20's and FGSM's."""

    def passes_by(self, other: Attack) -> bool:
        """Tell whether another attack's result lies on its way."""
        ...

    def together(self, others: Sequence[Attack], model: Classifier, x: Tensor, y: Tensor) -> list[Tensor]:
        """Return the images of attacks that it passes by, each the same as alone; it may be among them itself."""
        ...


@runtime_checkable
class StartsAnywhere(Protocol):
    """An attack that can go on from where another one stopped."""

    def run_from(self, start: Tensor, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        """Return x_adv (N, C, H, W), detached, in the threat set around x, by a run that begins at `start`."""
        ...


@runtime_checkable
class FitsClasses(Protocol):
    """An attack whose loss is not defined for every number of classes."""

    def for_classes(self, num_classes: int) -> Attack:
        """Return the attack itself, or what to run instead on a network of so few classes."""
        ...


class Defended(Protocol):
    """What a strategy sees of a network with feature defences."""

    def __call__(self, x: Tensor, /) -> Tensor: ...

    @property
    def has_attack_terms(self) -> bool: ...

    @property
    def needs_clean(self) -> bool: ...

    def forward_with_aux(self, x: Tensor, targets: Tensor | None = None) -> Forward: ...

    def attack_terms(self, adv: Forward, y: Tensor, *, clean: Forward | None, loss: SampleLoss) -> Tensor | None: ...

    def auxiliary_losses(
        self, adv: Forward, y: Tensor, *, clean: Forward | None = None, criterion: Criterion
    ) -> dict[str, Tensor]: ...


class Strategy(Protocol):
    """How one batch is trained on: an attack and a criterion. Calling it crafts, then computes the losses."""

    @property
    def needs_clean(self) -> bool: ...

    def craft(self, model: Defended, x: Tensor, y: Tensor, progress: Progress) -> Crafted: ...

    def losses(self, model: Defended, crafted: Crafted) -> StepOutput: ...

    def __call__(self, model: Defended, x: Tensor, y: Tensor, progress: Progress) -> StepOutput: ...


@runtime_checkable
class Modifier(Protocol):
    """Acts around the optimiser step, with any strategy; any number of them compose."""

    def before_loss(self, module: nn.Module, loss: Callable[[], Tensor], progress: Progress) -> None:
        """Act between crafting and the loss; `loss()` is the batch's loss, in training mode, at the current weights."""
        ...

    def after_optimizer_step(self, module: nn.Module) -> None:
        """Take back what `before_loss` did to the weights; also called where a batch ends without a step."""
        ...

    def true_weights(self) -> Mapping[str, Tensor]:
        """Return, by their names in `module`, the weights that a checkpoint must hold instead of the current ones."""
        ...

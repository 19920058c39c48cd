"""The only way an attack touches a model: frozen, in eval mode, in a stated precision, and put back exactly."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from fsr_lab.core.folding import foldable_pairs, folded
from fsr_lab.core.losses import margin
from fsr_lab.core.suggest import unknown
from fsr_lab.core.types import Classifier

Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How precisely a network is computed while it is attacked; the default is the reference.

    Attributes:
        dtype: "float32" computes in the parameters' own precision, "bfloat16" under autocast. float16 is not
            offered: the signs of its underflowing gradients are wrong.
        channels_last: convolution weights in channels-last order.
        fold: BatchNorm folded into the convolution before it where a forward shows that to be exact.

    Raises:
        ValueError: an unknown dtype.
    """

    dtype: Dtype = "float32"
    channels_last: bool = False
    fold: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in get_args(Dtype):
            raise ValueError(unknown("crafting dtype", self.dtype, get_args(Dtype)))

    def __str__(self) -> str:
        extras = [name for name, is_on in (("channels-last", self.channels_last), ("folded", self.fold)) if is_on]
        return " ".join([self.dtype, *extras])


REFERENCE = Policy()


@contextmanager
def crafting(
    model: Classifier, policy: Policy = REFERENCE, *, example: Tensor | None = None, noise: bool = False
) -> Iterator[Classifier]:
    """Yield the function to attack: `model` in eval mode with frozen parameters, gradients enabled.

    Every module's `training`, every parameter and its `requires_grad` are put back on exit, module by module: a
    frozen BatchNorm stays frozen. Autocast is the policy's, never inherited. A callable that is no module passes
    through.

    Args:
        model: maps (N, C, H, W) to logits.
        policy: precision and layout.
        example: (N, C, H, W) a batch the model takes; needed where the policy folds.
        noise: let modules that declare `training_noise` draw it (expectation over transformations). Labels are
            read by nobody on account of it, and BatchNorm stays in eval mode.

    Raises:
        ValueError: the policy folds and there is no example to find the pairs with.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if policy.dtype == "float32":
            stack.enter_context(_no_tf32())
        for device in _device_types():
            stack.enter_context(torch.autocast(device, torch.bfloat16, enabled=policy.dtype == "bfloat16"))
        if isinstance(model, nn.Module):
            stack.enter_context(_evaluating(model, noise))
            if policy != REFERENCE:
                stack.enter_context(_rewritten(model, policy, example))
        yield model


@contextmanager
def judging(model: Classifier) -> Iterator[Classifier]:
    """Yield the deployed model: eval mode, its own precision, no gradients, everything put back on exit."""
    with crafting(model) as deployed, torch.no_grad():
        yield deployed


def deployed_margins(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
    """Return the deployed model's margins on images, (N,): what decides who is fooled, whatever crafting computes in.

    Not inside `crafting`, whose policy would still lie over the weights.
    """
    with judging(model) as deployed:
        return margin(deployed(x), y)


@contextmanager
def _no_tf32() -> Iterator[None]:
    """Keep a GPU's convolutions in float32: torch lets them round to ten bits of mantissa unless told."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    try:
        cudnn.allow_tf32 = matmul.allow_tf32 = False
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


def _device_types() -> list[str]:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return ["cpu"] if accelerator is None else ["cpu", accelerator.type]


@contextmanager
def _evaluating(model: nn.Module, noise: bool) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    frozen = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for module, _ in modes:
            # the attribute, not .eval(): that would recurse, and some modules override it
            module.training = noise and getattr(module, "training_noise", False)
        for parameter, _ in frozen:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in frozen:
            parameter.requires_grad_(requires_grad)


@contextmanager
def _rewritten(model: nn.Module, policy: Policy, example: Tensor | None) -> Iterator[None]:
    """Lay folded, cast and reordered weights over the model's own, which are back on exit, the same objects.

    Casting here, once, matters: autocast caches the casts of trainable weights only, so that a frozen network
    would be cast again at every step of an attack.
    """
    if policy.fold and example is None:
        raise ValueError("a policy that folds BatchNorm needs an example batch: crafting(model, policy, example=x)")
    pairs = foldable_pairs(model, example) if policy.fold and example is not None else []
    replaced: dict[nn.Module, dict[str, Tensor | None]] = {
        conv: dict(zip(("weight", "bias"), folded(conv, norm), strict=True)) for conv, norm in pairs
    }
    for module in model.modules():
        if type(module) in (nn.Conv2d, nn.Linear) and "weight" in module._parameters:
            own = replaced.setdefault(module, dict(module._parameters))
            replaced[module] = {name: _laid_out(value, policy) for name, value in own.items()}
    originals = [(module, dict(module._parameters)) for module in replaced]
    try:
        for module, weights in replaced.items():
            for name, value in weights.items():
                module._parameters[name] = None if value is None else nn.Parameter(value, requires_grad=False)
        for _, norm in pairs:
            vars(norm)["forward"] = _identity
        yield
    finally:
        for _, norm in pairs:
            vars(norm).pop("forward", None)
        for module, parameters in originals:
            module._parameters.update(parameters)


def _laid_out(value: Tensor | None, policy: Policy) -> Tensor | None:
    if value is None:
        return None
    if policy.dtype == "bfloat16":
        value = value.detach().bfloat16()
    if policy.channels_last and value.ndim == 4:
        value = value.detach().contiguous(memory_format=torch.channels_last)
    return value.detach()


def _identity(features: Tensor) -> Tensor:
    return features

"""BatchNorm folded into the convolution before it, for as long as a network is frozen.

In eval mode BatchNorm is affine, so folding is exact up to rounding and saves its pass over the activations.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Pair = tuple[nn.Conv2d, nn.BatchNorm2d]

_PAIRS: WeakKeyDictionary[nn.Module, list[Pair]] = WeakKeyDictionary()


def foldable_pairs(model: nn.Module, example: Tensor) -> list[Pair]:
    """Return the convolutions whose output one BatchNorm, and nothing else, consumes.

    Found by watching a forward of one image, once per model unless a module is exchanged; pairs that carry a hook
    (a tap among them) are left as they are, whenever it was added.

    Args:
        model: in eval mode.
        example: (N, C, H, W), N at least 1, what the model takes.
    """
    there = set(model.modules())
    if model not in _PAIRS or any(module not in there for pair in _PAIRS[model] for module in pair):
        _PAIRS[model] = _observe(model, example[:1])
    return [pair for pair in _PAIRS[model] if not any(_is_hooked(module) for module in pair)]


def folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return the weight and bias with which `conv` alone computes `norm(conv(x))` in eval mode."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean if conv.bias is None else conv.bias - norm.running_mean
    bias = shift * scale if norm.bias is None else shift * scale + norm.bias
    return (conv.weight * scale[:, None, None, None]).detach(), bias.detach()


def _observe(model: nn.Module, example: Tensor) -> list[Pair]:
    uses = _Uses()
    produced: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # holds the tensors, so that no id is used twice
    calls: Counter[nn.Module] = Counter()
    met: list[tuple[int, nn.BatchNorm2d]] = []

    def after_conv(conv: nn.Module, _: Any, output: Tensor) -> None:
        assert isinstance(conv, nn.Conv2d)
        calls[conv] += 1
        produced[id(output)] = (conv, output)
        uses.count[id(output)] = 0  # an earlier tensor, gone by now, may have had this id

    def before_norm(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, nn.BatchNorm2d)
        calls[norm] += 1
        if id(inputs[0]) in produced:
            met.append((id(inputs[0]), norm))

    handles = []
    for module in model.modules():
        if type(module) is nn.Conv2d:
            handles.append(module.register_forward_hook(after_conv))
        elif type(module) is nn.BatchNorm2d and module.running_mean is not None:
            handles.append(module.register_forward_pre_hook(before_norm))
    devices = [example.device] if example.is_cuda else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices), uses:
            result = model(example)
    finally:
        for handle in handles:
            handle.remove()
    uses.count.update(id(leaf) for leaf in tree_leaves(result))
    return [
        (produced[key][0], norm)
        for key, norm in met
        if uses.count[key] == 1 and calls[produced[key][0]] == calls[norm] == 1
    ]


class _Uses(TorchDispatchMode):
    """Counts, by identity, how many operations read a tensor."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count.update(id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        return func(*args, **(kwargs or {}))


def _is_hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))

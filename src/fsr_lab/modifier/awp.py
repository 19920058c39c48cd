"""Adversarial weight perturbation."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fsr_lab.core.types import Progress
from fsr_lab.core.units import nonnegative, whole


class _Kept(NamedTuple):
    names: list[str]
    weight: nn.Parameter
    true: Tensor
    perturbed: Tensor


class AWP:
    """Trains at nearby weights where the loss is higher (Wu, Xia and Wang, NeurIPS 2020, arXiv:2004.05884).

    Between crafting and the loss each weight tensor w moves by gamma * ||w|| / ||g|| * g, g being the gradient of the
    whole loss at the crafted images; after the optimiser's step the same move is taken back. Moved are the tensors of
    two dimensions and more with "weight" in their names: convolutions and linear layers, those of feature defences
    too, neither BatchNorm nor biases.

    Differs from the released code in form alone (its variant that ascends on the classification loss alone is not
    offered): no proxy network is copied and stepped, since the step's length
    cancels in the normalisation. As with a proxy, the ascent leaves `.grad`, buffers and metrics alone.

    Weights are put back as w + (w' - perturbed), w' being what the optimiser made of the perturbed ones: where it
    changed nothing, w is back bit for bit. A batch without an optimiser step (accumulated gradients, an exception)
    ends at the true weights too. Under DDP all ranks perturb alike: by the gradient of the global batch.

    Args:
        gamma: length of the move, relative to each tensor's norm; 0.01 for AT, 0.005 for TRADES in the paper.
        warmup_epochs: how many epochs are trained without it first; 0 for AT, 10 for TRADES in the released code.
        share_noise: the loss sees the same random draws (FSR's mask) as the ascent did; otherwise fresh ones.

    Raises:
        ValueError: a negative gamma or warm-up.
    """

    def __init__(self, *, gamma: float = 0.01, warmup_epochs: int = 0, share_noise: bool = False) -> None:
        self.gamma = nonnegative("AWP's gamma", gamma)
        self.warmup_epochs = whole("AWP's warmup_epochs", warmup_epochs)
        self.share_noise = share_noise
        self._kept: list[_Kept] = []

    def before_loss(self, module: nn.Module, loss: Callable[[], Tensor], progress: Progress) -> None:
        """Move the weights uphill, from the true ones; see `Modifier.before_loss`."""
        self.after_optimizer_step(module)
        if self.gamma == 0 or progress.epoch < self.warmup_epochs:
            return
        named = _weights(module)
        with ExitStack() as stack:
            stack.enter_context(_buffers_kept(module))
            if self.share_noise:
                stack.enter_context(_draws_kept(named[0][1].device))
            found = torch.autograd.grad(loss(), [weight for _, weight in named], allow_unused=True)
        gradients = _over_ranks(
            [torch.zeros_like(w) if g is None else g for g, (_, w) in zip(found, named, strict=True)]
        )
        kept = []
        with torch.no_grad():
            for (names, weight), gradient in zip(named, gradients, strict=True):
                true = weight.detach().clone()
                move = true.norm() / (gradient.norm() + 1e-20) * gradient
                kept.append(_Kept(names, weight, true, true + self.gamma * move))
            self._kept = kept  # only now, when nothing can fail before all are moved
            for entry in kept:
                entry.weight.copy_(entry.perturbed)
        torch.clear_autocast_cache()  # it holds casts of the true weights, and of a graph that is gone

    def after_optimizer_step(self, module: nn.Module) -> None:
        """Put the weights back, with what the optimiser added to them."""
        if not self._kept:
            return
        with torch.no_grad():
            for kept in self._kept:
                kept.weight.copy_(_true(kept))
        self._kept = []
        torch.clear_autocast_cache()

    def true_weights(self) -> Mapping[str, Tensor]:
        """Return what the perturbed weights would be put back to, by every name that they have; see `Modifier`."""
        return {name: _true(kept) for kept in self._kept for name in kept.names}


def _true(kept: _Kept) -> Tensor:
    return kept.true + (kept.weight.detach() - kept.perturbed)


def _weights(module: nn.Module) -> list[tuple[list[str], nn.Parameter]]:
    """Return the tensors to perturb, each once, with all of its names."""
    found: dict[nn.Parameter, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if parameter.ndim >= 2 and parameter.requires_grad and "weight" in name:
            found.setdefault(parameter, []).append(name)
    return [(names, parameter) for parameter, names in found.items()]


@contextmanager
def _buffers_kept(module: nn.Module) -> Iterator[None]:
    """Give buffers their values back: BatchNorm's statistics are those of the descent alone."""
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                buffer.copy_(before[name])


@contextmanager
def _draws_kept(device: torch.device) -> Iterator[None]:
    """Give the generators their states back, so that the next draws are those made inside."""
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        yield


def _over_ranks(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients' mean over all ranks; gloo has no mean of its own."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return list(gradients)
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    parts = flat.split([gradient.numel() for gradient in gradients])
    return [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)]

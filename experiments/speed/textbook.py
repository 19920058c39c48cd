"""Adversarial training as published code tends to write it: what the speed page compares with.

Float32, NCHW, parameters that take gradients while images are crafted, `loss.backward()` in the attack, auxiliary heads
that run in every forward, a DataLoader that transforms image by image. Network and losses are the same as ours.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torchattacks
from torch import Tensor
from torch.nn import functional
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from fsr_lab.core.threat import Threat
from fsr_lab.core.types import Forward
from fsr_lab.model.defended import DefendedModel

THREAT = Threat(norm="linf", eps=8 / 255)
STEP = THREAT.eps / 4
BETA = 6.0

Crafting = Callable[[DefendedModel, Tensor, Tensor], Tensor]


class PerImage(Dataset[tuple[Tensor, Tensor]]):
    """Images that are cropped, flipped and converted one by one."""

    def __init__(self, images: Tensor, labels: Tensor, padding: int = 4) -> None:
        side = images.shape[-1]
        self.images, self.labels = images, labels
        self.transform = v2.Compose(
            [v2.RandomCrop(side, padding=padding), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True)]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.transform(self.images[index]), self.labels[index]


def endless(images: Tensor, labels: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches for ever, from two worker processes."""
    loader = DataLoader(PerImage(images, labels), batch, shuffle=True, drop_last=True, num_workers=2)
    while True:
        yield from loader


def pgd(model: DefendedModel, x: Tensor, y: Tensor, steps: int = 10, size: float = STEP, start: bool = True) -> Tensor:
    """PGD on the cross-entropy as tutorials write it: gradients of every weight computed and thrown away."""
    x_adv = THREAT.random_start(x) if start else x.clone()
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        model.zero_grad()
        functional.cross_entropy(_logits(model, x_adv), y).backward()
        x_adv = _moved(x_adv, x, size)
    return x_adv


def trades_pgd(model: DefendedModel, x: Tensor, y: Tensor, steps: int = 10) -> Tensor:
    """PGD on KL from the clean prediction, likewise."""
    x_adv = x + 0.001 * torch.randn_like(x)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        model.zero_grad()
        _kl(_logits(model, x_adv), _logits(model, x)).backward()
        x_adv = _moved(x_adv, x, STEP)
    return x_adv


def published_pgd(steps: int = 10) -> Crafting:
    """Return torchattacks' PGD."""
    return lambda model, x, y: torchattacks.PGD(model, eps=THREAT.eps, alpha=STEP, steps=steps)(x, y)


def published_trades_pgd(steps: int = 10) -> Crafting:
    """Return torchattacks' PGD on KL."""
    return lambda model, x, y: torchattacks.TPGD(model, eps=THREAT.eps, alpha=STEP, steps=steps)(x, y)


def step(model: DefendedModel, optimizer: Optimizer, craft: Crafting, is_trades: bool) -> Callable[..., object]:
    """Return one optimiser step of AT or TRADES, with the defences' losses."""

    def run(x: Tensor, y: Tensor) -> None:
        model.eval()
        x_adv = craft(model, x, y)
        model.train()
        clean: Forward | None = model.forward_with_aux(x, y) if is_trades else None
        adv = model.forward_with_aux(x_adv, y)
        loss = functional.cross_entropy(adv.logits if clean is None else clean.logits, y)
        if clean is not None:
            loss = loss + BETA * _kl(adv.logits, clean.logits)
        terms: dict[str, Any] = model.auxiliary_losses(adv, y, clean=clean, criterion=lambda *_: {})
        optimizer.zero_grad()
        sum(terms.values(), loss).backward()
        optimizer.step()

    return run


def _logits(model: DefendedModel, x: Tensor) -> Tensor:
    return model.forward_with_aux(x).logits


def _kl(logits: Tensor, target: Tensor) -> Tensor:
    return functional.kl_div(logits.log_softmax(1), target.softmax(1), reduction="batchmean")


def _moved(x_adv: Tensor, x: Tensor, size: float) -> Tensor:
    assert x_adv.grad is not None
    moved = x_adv.detach() + size * x_adv.grad.sign()
    return torch.clamp(torch.clamp(moved, x - THREAT.eps, x + THREAT.eps), 0, 1)

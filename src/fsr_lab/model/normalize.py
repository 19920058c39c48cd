"""Normalisation as a network's first layer, so that images stay in [0, 1] everywhere outside it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """Subtracts a mean and divides by a deviation, per channel.

    Put on a network, it is part of what is attacked, and layers and weights keep their names: it works on the
    network's input by a hook, and holds no entry of the state dict.

    Args:
        mean: per channel, of images in [0, 1].
        std: per channel, above 0.

    Raises:
        ValueError: lengths differ, or a deviation is not above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not mean or min(std) <= 0:
            raise ValueError(f"expected as many means as deviations, these above 0, got {list(mean)} and {list(std)}")
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) in [0, 1] to the same, normalised."""
        if x.shape[1] != len(self.mean):
            raise ValueError(
                f"expected images of {len(self.mean)} channels, as many as normalize names, got {x.shape[1]}"
            )
        return (x - self.mean) / self.std

    def put_on(self, network: nn.Module) -> None:
        """Make this the first layer of a network, as its module `normalize`.

        Raises:
            ValueError: the network is a Sequential, which would run it again as its last layer.
        """
        if isinstance(network, nn.Sequential):
            raise ValueError(
                "a Sequential runs whatever is added to it; put fsr_lab.model.normalize.Normalize in front of its "
                "layers, and leave out model.normalize"
            )
        network.add_module("normalize", self)
        network.register_forward_pre_hook(self.before)

    def before(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Replace a network's input; a bound method, which copies of the network rebind to their own."""
        return (self(inputs[0]), *inputs[1:])

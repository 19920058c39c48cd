"""The nets of FSR, and the two ways to run one."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn
from torch.func import functional_call

RecLast = Literal["conv", "conv_bn", "conv_bn_relu"]
Run = Callable[[nn.Module, Tensor], Tensor]


def bottleneck(channels: int, width: int, *, last: RecLast) -> nn.Sequential:
    """Return three 3x3 convolutions, channels -> width -> width -> channels: the Separation and Recalibration Nets."""
    layers: list[nn.Module] = []
    for c_in in (channels, width):
        layers += [nn.Conv2d(c_in, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    layers.append(nn.Conv2d(width, channels, 3, padding=1, bias=False))
    if last != "conv":
        layers.append(nn.BatchNorm2d(channels))
    if last == "conv_bn_relu":
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def head(channels: int, num_classes: int, hidden: int | None) -> nn.Module:
    """Return the auxiliary head on spatial means: one linear layer, or two with a ReLU between."""
    if hidden is None:
        return nn.Linear(channels, num_classes)
    return nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, num_classes))


def run(net: nn.Module, features: Tensor) -> Tensor:
    """Run a net on (N, C, H, W)."""
    output: Tensor = net(features)
    return output


def run_again(net: nn.Module, features: Tensor) -> Tensor:
    """Run a net a second time over the same batch, which its BatchNorm statistics count once."""
    spent = {name: value.clone() for name, value in net.named_buffers()}
    output: Tensor = functional_call(net, spent, (features,))
    return output

"""WideResNet for small images: Zagoruyko and Komodakis, 2016 (arXiv:1605.07146), as TRADES and FSR released it."""

from torch import Tensor, nn

from fsr_lab.model.preact_resnet import preact_group

STEM = 16
"""Channels of the stem; the groups have this, 2 and 4 times as many, times the widening factor."""


class WideResNet(nn.Module):
    """A bare 3x3 stem, three groups of pre-activation blocks, a last BatchNorm-ReLU, global pooling, one linear layer.

    Differs from the released code in two oddities of it: the second copy of the first group that is never called
    (`sub_block1`) is left out, and the pooling is global, not 8x8, so that images of any size give one row each.
    The released FSR sits after the last BatchNorm-ReLU (`relu`); `block3` is the paper read literally, where the
    features are signed sums.

    Args:
        depth: 6n + 4 for n blocks per group.
        widen_factor: how many times wider than the thin network.
        num_classes: K.
        in_channels: of the images.

    Raises:
        ValueError: a depth that is not 6n + 4, or a widening factor below 1.
    """

    def __init__(self, *, depth: int = 34, widen_factor: int = 10, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"expected a depth of 6n + 4, such as 28 or 34, got {depth}")
        if widen_factor < 1:
            raise ValueError(f"expected widen_factor of at least 1, got {widen_factor}")
        count, width = (depth - 4) // 6, STEM * widen_factor
        self.conv1 = nn.Conv2d(in_channels, STEM, 3, padding=1, bias=False)
        self.block1 = preact_group(STEM, width, count, stride=1)
        self.block2 = preact_group(width, 2 * width, count, stride=2)
        self.block3 = preact_group(2 * width, 4 * width, count, stride=2)
        self.bn1 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, num_classes)
        self.apply(self.initialize)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) in [0, 1] to logits (N, K)."""
        features = self.block3(self.block2(self.block1(self.conv1(x))))
        logits: Tensor = self.fc(self.avgpool(self.relu(self.bn1(features))).flatten(1))
        return logits

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """Initialise one layer: convolutions N(0, sqrt(2 / (k * k * outputs))), linear biases zero."""
        if isinstance(module, nn.Conv2d):
            # fan-out with ReLU's gain is that deviation, where groups are one
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

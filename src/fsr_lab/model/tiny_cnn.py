"""The smallest network with a feature map worth defending: for tests, and for a first look."""

from torch import Tensor, nn


class TinyCNN(nn.Module):
    """Two stride-2 convolutions, pooling, one linear layer; without BatchNorm unless asked for.

    Args:
        num_classes: K.
        in_channels: of the images.
        width: channels of the first convolution; the second doubles it.
        batch_norm: whether each convolution is followed by BatchNorm.
    """

    def __init__(
        self, *, num_classes: int = 10, in_channels: int = 3, width: int = 8, batch_norm: bool = False
    ) -> None:
        super().__init__()
        self.block1 = _block(in_channels, width, batch_norm)
        self.block2 = _block(width, 2 * width, batch_norm)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) in [0, 1] to logits (N, K)."""
        logits: Tensor = self.fc(self.avgpool(self.block2(self.block1(x))).flatten(1))
        return logits


def _block(in_channels: int, channels: int, batch_norm: bool) -> nn.Sequential:
    block = nn.Sequential()
    block.add_module("conv", nn.Conv2d(in_channels, channels, 3, stride=2, padding=1, bias=not batch_norm))
    if batch_norm:
        block.add_module("norm", nn.BatchNorm2d(channels))
    block.add_module("relu", nn.ReLU())
    return block

"""ResNet for small images: He et al., 2016 (arXiv:1512.03385), in the CIFAR form of the adversarial literature."""

from typing import ClassVar

from torch import Tensor, nn


class ResNet(nn.Module):
    """A 3x3 stem without pooling, four groups of post-activation blocks, global average pooling, one linear layer.

    Differs from the ImageNet form in the stem (3x3, stride 1, no max-pool), as the released FSR code does. Takes
    images of any size of at least 8x8. Initialised by PyTorch's defaults, as there.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        blocks: number of blocks in each of the four groups.
        num_classes: K.
        in_channels: of the images.
        width: channels of the stem; the groups have 1, 2, 4 and 8 times as many, times the block's expansion. 64 is
            the paper's.
    """

    def __init__(
        self,
        block: "type[BasicBlock | Bottleneck]",
        blocks: tuple[int, int, int, int],
        *,
        num_classes: int,
        in_channels: int,
        width: int,
    ) -> None:
        super().__init__()
        out = block.expansion * width
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.layer1 = _group(block, width, width, blocks[0], stride=1)
        self.layer2 = _group(block, out, 2 * width, blocks[1], stride=2)
        self.layer3 = _group(block, 2 * out, 4 * width, blocks[2], stride=2)
        self.layer4 = _group(block, 4 * out, 8 * width, blocks[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8 * out, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) in [0, 1] to logits (N, K)."""
        features = self.relu(self.bn1(self.conv1(x)))
        features = self.layer4(self.layer3(self.layer2(self.layer1(features))))
        logits: Tensor = self.fc(self.avgpool(features).flatten(1))
        return logits


def resnet18(*, num_classes: int = 10, in_channels: int = 3, width: int = 64) -> ResNet:
    """Build ResNet-18: 11,173,962 parameters at width 64 for ten classes."""
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes=num_classes, in_channels=in_channels, width=width)


def resnet50(*, num_classes: int = 10, in_channels: int = 3, width: int = 64) -> ResNet:
    """Build ResNet-50, the surrogate of transfer attacks: 23,520,842 parameters at width 64 for ten classes."""
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes=num_classes, in_channels=in_channels, width=width)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut, which is a 1x1 convolution where the shape changes."""

    expansion: ClassVar[int] = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.shortcut = _shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C, H / stride, W / stride), not negative."""
        residual = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        activated: Tensor = self.relu2(residual + self.shortcut(x))
        return activated


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a four times wider 1x1 convolution with a shortcut; the 3x3 has the stride."""

    expansion: ClassVar[int] = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out = self.expansion * channels
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(channels, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.relu3 = nn.ReLU()
        self.shortcut = _shortcut(in_channels, out, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, 4 C, H / stride, W / stride), not negative."""
        features = self.relu2(self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x))))))
        activated: Tensor = self.relu3(self.bn3(self.conv3(features)) + self.shortcut(x))
        return activated


def _shortcut(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    if stride == 1 and in_channels == channels:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))


def _group(
    block: type[BasicBlock | Bottleneck], in_channels: int, channels: int, count: int, stride: int
) -> nn.Sequential:
    blocks = [block(in_channels, channels, stride)]
    blocks += [block(block.expansion * channels, channels, 1) for _ in range(count - 1)]
    return nn.Sequential(*blocks)

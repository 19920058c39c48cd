"""Pre-activation ResNet for small images: He et al., 2016, "Identity Mappings" (arXiv:1603.05027)."""

from torch import Tensor, nn


class PreActResNet(nn.Module):
    """A bare 3x3 stem, four groups of pre-activation blocks, a last BatchNorm-ReLU, global pooling, one linear layer.

    The last BatchNorm-ReLU, which the paper has, is missing in some published code for CIFAR; the adversarial
    literature's networks have it. Takes images of any size. Initialised by PyTorch's defaults.

    Args:
        blocks: number of blocks in each of the four groups.
        num_classes: K.
        in_channels: of the images.
        width: channels of the first group; the others double it.
    """

    def __init__(self, blocks: tuple[int, int, int, int], *, num_classes: int, in_channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.layer1 = preact_group(width, width, blocks[0], stride=1)
        self.layer2 = preact_group(width, 2 * width, blocks[1], stride=2)
        self.layer3 = preact_group(2 * width, 4 * width, blocks[2], stride=2)
        self.layer4 = preact_group(4 * width, 8 * width, blocks[3], stride=2)
        self.bn = nn.BatchNorm2d(8 * width)
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) in [0, 1] to logits (N, K)."""
        features = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        logits: Tensor = self.fc(self.avgpool(self.relu(self.bn(features))).flatten(1))
        return logits


def preact_resnet18(*, num_classes: int = 10, in_channels: int = 3, width: int = 64) -> PreActResNet:
    """Build PreActResNet-18: 11,172,170 parameters at width 64 for ten classes."""
    return PreActResNet((2, 2, 2, 2), num_classes=num_classes, in_channels=in_channels, width=width)


class PreActBlock(nn.Module):
    """BatchNorm-ReLU before each of two 3x3 convolutions.

    Where the shape changes, the shortcut is a bare 1x1 convolution of the activated input; elsewhere it is the input
    itself, not activated. The output is a sum: signed, before the next BatchNorm.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C, H / stride, W / stride)."""
        activated = self.relu1(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        residual: Tensor = self.conv2(self.relu2(self.bn2(self.conv1(activated))))
        return shortcut + residual


def preact_group(in_channels: int, channels: int, count: int, stride: int) -> nn.Sequential:
    """Return `count` blocks, the first of which changes the shape."""
    blocks = [PreActBlock(in_channels, channels, stride)]
    blocks += [PreActBlock(channels, channels, 1) for _ in range(count - 1)]
    return nn.Sequential(*blocks)

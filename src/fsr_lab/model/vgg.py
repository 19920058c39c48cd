"""VGG16-BN for small images: Simonyan and Zisserman, 2015 (arXiv:1409.1556), as in the released FSR code."""

from torch import Tensor, nn


class VGG(nn.Module):
    """Five blocks of 3x3 convolutions, each followed by a max-pool, global average pooling and three linear layers.

    Convolutions have biases although BatchNorm follows them; the head has three layers of equal width, without
    dropout: it is the parameter count of the paper's Table 7 that decides for three. Blocks and pools count from 1,
    as the paper does; the released code counts from 0. Its FSR site is `block4`, before that block's pool; `pool4`
    is the other reading of the paper. Takes images of at least 32x32.

    Args:
        convs: convolutions in each of the five blocks.
        num_classes: K.
        in_channels: of the images.
        width: channels of the first block; the others are 2, 4, 8 and 8 times as wide. 64 is the paper's.
    """

    def __init__(
        self, convs: tuple[int, int, int, int, int], *, num_classes: int, in_channels: int, width: int
    ) -> None:
        super().__init__()
        hidden = 8 * width
        self.block1 = _block(in_channels, width, convs[0])
        self.pool1 = nn.MaxPool2d(2)
        self.block2 = _block(width, 2 * width, convs[1])
        self.pool2 = nn.MaxPool2d(2)
        self.block3 = _block(2 * width, 4 * width, convs[2])
        self.pool3 = nn.MaxPool2d(2)
        self.block4 = _block(4 * width, hidden, convs[3])
        self.pool4 = nn.MaxPool2d(2)
        self.block5 = _block(hidden, hidden, convs[4])
        self.pool5 = nn.MaxPool2d(2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, num_classes)
        )
        self.apply(self.initialize)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) in [0, 1] to logits (N, K)."""
        features = self.pool2(self.block2(self.pool1(self.block1(x))))
        features = self.pool4(self.block4(self.pool3(self.block3(features))))
        features = self.pool5(self.block5(features))
        logits: Tensor = self.classifier(self.avgpool(features).flatten(1))
        return logits

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """Initialise one layer: convolutions Kaiming-normal by fan-out, linear layers N(0, 0.01), biases zero."""
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
        else:
            return
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def vgg16(*, num_classes: int = 10, in_channels: int = 3, width: int = 64) -> VGG:
    """Build VGG16-BN: 15,253,578 parameters at width 64 for ten classes."""
    return VGG((2, 2, 3, 3, 3), num_classes=num_classes, in_channels=in_channels, width=width)


def _block(in_channels: int, channels: int, count: int) -> nn.Sequential:
    block = nn.Sequential()
    for index in range(1, count + 1):
        block.add_module(f"conv{index}", nn.Conv2d(in_channels if index == 1 else channels, channels, 3, padding=1))
        block.add_module(f"bn{index}", nn.BatchNorm2d(channels))
        block.add_module(f"relu{index}", nn.ReLU())
    return block

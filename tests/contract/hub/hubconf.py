"""A torch.hub repository, for the tests of model=torch_hub."""

dependencies = ["torch"]

from torch import nn  # noqa: E402


class _Small(nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(16, num_classes),
        )  # fmt: skip

    def forward(self, x):
        return self.layers(x)


def small(num_classes=10, in_channels=3):
    """Return a small network of convolutions."""
    return _Small(num_classes, in_channels)

"""Feature Denoising (Xie et al., CVPR 2019, arXiv:1812.03411)."""

from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn import functional

from fsr_lab.core.defense import FeatureDefense
from fsr_lab.core.route import Route
from fsr_lab.core.suggest import unknown
from fsr_lab.core.types import DefenseOutput, FeatureShape

Kernel = Literal["embedded_gaussian", "dot", "mean", "median"]


class FD(FeatureDefense):
    """Adds a smoothed copy of a feature map to it: l + BN(conv1x1(smooth(l))), the identity until BN's scale moves.

    `smooth` is a weighted mean over all pixels j for each pixel i, or a 3x3 filter:

    - embedded_gaussian: weights softmax_j(theta_i . phi_j / sqrt(C / 2)); theta and phi halve the channels.
    - dot: weights (l_i . l_j) / (H W), without embeddings.
    - mean, median: of the 3x3 neighbourhood, channel by channel. Beyond the edge, the mean has no pixels and the median
      repeats the edge's.

    The same in training and evaluation but for the BatchNorm; no labels, no loss, no auxiliary tensors. Until the
    scale has left zero, no gradient reaches the convolutions.

    Deviation: the paper has no form for small images; this one sits after each group of blocks, as in its
    R-152 Denoise, and is trained by the strategy at hand, not by the paper's targeted ImageNet recipe.

    Args:
        shape: of the feature; sizes only the channels.
        num_classes: not used.
        kernel: how pixels are weighted.

    Raises:
        ValueError: an unknown kernel.
    """

    def __init__(self, shape: FeatureShape, num_classes: int, *, kernel: Kernel = "embedded_gaussian") -> None:
        super().__init__()
        if kernel not in get_args(Kernel):
            raise ValueError(unknown("FD kernel", kernel, get_args(Kernel)))
        self.kernel = kernel
        if kernel == "embedded_gaussian":
            self.theta = _embedding(shape.channels)
            self.phi = _embedding(shape.channels)
        self.project = nn.Conv2d(shape.channels, shape.channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(shape.channels)
        nn.init.zeros_(self.norm.weight)

    def forward(
        self,
        features: Tensor,
        targets: Tensor | None = None,
        *,
        route: Route | None = None,
        want_aux: bool = True,
    ) -> DefenseOutput:
        """Denoise (N, C, H, W) features; see `FeatureDefense.forward`. Labels are not used."""
        denoised = features + self.norm(self.project(self.smooth(features)))
        return DefenseOutput(denoised.to(features.dtype), {})

    def smooth(self, features: Tensor) -> Tensor:
        """Return the weighted mean of (N, C, H, W) features, in their shape."""
        if self.kernel == "embedded_gaussian":
            return attended(self.theta(features), self.phi(features), features)
        if self.kernel == "dot":
            return dot_product_mean(features)
        return local_mean(features) if self.kernel == "mean" else local_median(features)


def attended(theta: Tensor, phi: Tensor, features: Tensor) -> Tensor:
    """Return sum_j softmax_j(theta_i . phi_j / sqrt(D)) l_j for every pixel i.

    Args:
        theta: (N, D, H, W).
        phi: (N, D, H, W).
        features: l, (N, C, H, W).
    """
    # four axes, one of them a single head: fused kernels take no fewer, and they never hold all (H W)^2 weights
    query, key, value = (maps.flatten(2).transpose(1, 2).unsqueeze(1) for maps in (theta, phi, features))
    mean = functional.scaled_dot_product_attention(query, key, value)
    return mean.squeeze(1).transpose(1, 2).reshape(features.shape)


def dot_product_mean(features: Tensor) -> Tensor:
    """Return (1 / (H W)) sum_j (l_i . l_j) l_j for every pixel i of l, (N, C, H, W).

    The products are associated so that the matrix between them is the smaller one: C x C or (H W) x (H W).
    """
    pixels = features.flatten(2)
    channels, count = pixels.shape[1:]
    scaled = pixels.mT / count
    mean = (pixels @ scaled) @ pixels if channels <= count else pixels @ (scaled @ pixels)
    return mean.reshape(features.shape)


def local_mean(features: Tensor) -> Tensor:
    """Return the mean of each 3x3 neighbourhood of (N, C, H, W), over the pixels that exist."""
    return functional.avg_pool2d(features, 3, stride=1, padding=1, count_include_pad=False)


def local_median(features: Tensor) -> Tensor:
    """Return the median of each 3x3 neighbourhood of (N, C, H, W), edges repeated outwards."""
    padded = functional.pad(features, (1, 1, 1, 1), mode="replicate")
    neighbourhoods = padded.unfold(2, 3, 1).unfold(3, 3, 1).flatten(4)
    # not .median(): on a GPU it is refused wherever deterministic algorithms are asked for
    return neighbourhoods.sort(-1).values[..., 4]


def _embedding(channels: int) -> nn.Conv2d:
    conv = nn.Conv2d(channels, max(channels // 2, 1), 1, bias=False)
    nn.init.normal_(conv.weight, std=0.01)
    return conv

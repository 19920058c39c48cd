"""Feature denoising against its sums, pixel by pixel, in float64."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fsr_lab.core.types import FeatureShape
from fsr_lab.defense.fd import FD, attended, dot_product_mean, local_mean, local_median
from fsr_lab.model.defended import attach
from fsr_lab.model.resnet import resnet18

SHAPE = FeatureShape(6, 3, 4)
KERNELS = ("embedded_gaussian", "dot", "mean", "median")


def opened(kernel, shape=SHAPE):
    """Return a block whose gate is open and whose statistics are not the initial ones."""
    defense = FD(shape, 10, kernel=kernel).double()
    nn.init.uniform_(defense.norm.weight, 0.5, 2.0)
    nn.init.uniform_(defense.norm.bias, -1.0, 1.0)
    nn.init.uniform_(defense.norm.running_mean, -1.0, 1.0)
    nn.init.uniform_(defense.norm.running_var, 0.5, 2.0)
    return defense.eval()


def neighbours(image, row, column):
    """Return the pixels (C,) of the 3x3 neighbourhood that exist."""
    _, height, width = image.shape
    rows = [r for r in (row - 1, row, row + 1) if 0 <= r < height]
    return [image[:, r, c] for r in rows for c in (column - 1, column, column + 1) if 0 <= c < width]


def weights(defense, pixels):
    """Return the weight of each pixel j for each pixel i, as the paper writes them."""
    if defense.kernel == "dot":
        return [[(own @ other) / len(pixels) for other in pixels] for own in pixels]
    theta, phi = (conv.weight[:, :, 0, 0] for conv in (defense.theta, defense.phi))
    rows = []
    for own in pixels:
        score = [math.exp((theta @ own) @ (phi @ other) / math.sqrt(pixels[0].numel() / 2)) for other in pixels]
        rows.append([value / sum(score) for value in score])
    return rows


def smoothed(defense, image):
    """Return the denoised image (C, H, W), pixel by pixel."""
    result = torch.empty_like(image)
    _, height, width = image.shape
    places = [(row, column) for row in range(height) for column in range(width)]
    if defense.kernel in ("embedded_gaussian", "dot"):
        pixels = [image[:, row, column] for row, column in places]
        for (row, column), own in zip(places, weights(defense, pixels), strict=True):
            result[:, row, column] = sum(weight * other for weight, other in zip(own, pixels, strict=True))
    for row, column in places:
        if defense.kernel == "mean":
            result[:, row, column] = torch.stack(neighbours(image, row, column)).mean(0)
        elif defense.kernel == "median":
            rows = [min(max(r, 0), height - 1) for r in (row - 1, row, row + 1)]
            columns = [min(max(c, 0), width - 1) for c in (column - 1, column, column + 1)]
            nine = torch.stack([image[:, r, c] for r in rows for c in columns])
            result[:, row, column] = nine.sort(0).values[4]
    return result


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", [(3, 4), (2, 2), (1, 1)])
def test_the_block_is_the_papers_sum(kernel, size):
    # six channels: more than four pixels, fewer than twelve
    defense = opened(kernel)
    if kernel == "embedded_gaussian":
        for conv in (defense.theta, defense.phi):
            nn.init.normal_(conv.weight)  # affinities far from uniform
    features = torch.randn(2, 6, *size, dtype=torch.float64)
    found = defense(features).features
    matrix, norm = defense.project.weight[:, :, 0, 0], defense.norm
    with torch.no_grad():
        for image, denoised in zip(features, found, strict=True):
            mean = smoothed(defense, image)
            torch.testing.assert_close(defense.smooth(image[None])[0], mean, atol=1e-12, rtol=1e-12)
            projected = torch.einsum("dc,chw->dhw", matrix, mean)
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            wanted = image + (projected - norm.running_mean[:, None, None]) * scale[:, None, None]
            torch.testing.assert_close(denoised, wanted + norm.bias[:, None, None], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(("kernel", "site", "network"), [("embedded_gaussian", 2, 698_240), ("dot", 1, 350_080)])
def test_parameter_counts_are_the_methods(kernel, site, network):
    with torch.device("meta"):
        for channels in (64, 128, 256, 512):
            defense = FD(FeatureShape(channels, 4, 4), 10, kernel=kernel)
            wanted = site * channels**2 + 2 * channels
            assert sum(parameter.numel() for parameter in defense.parameters()) == wanted
        stages = [f"layer{index}" for index in (1, 2, 3, 4)]
        model = attach(resnet18(), dict.fromkeys(stages, partial(FD, kernel=kernel)))
        assert sum(parameter.numel() for parameter in model.taps.parameters()) == network
        assert sum(parameter.numel() for parameter in model.parameters()) == 11_173_962 + network


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_fresh_block_is_the_identity(kernel):
    features = torch.randn(4, 6, 3, 4)
    for training in (True, False):
        assert torch.equal(FD(SHAPE, 10, kernel=kernel).train(training)(features).features, features)


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_pass_the_gate_once_it_is_open(kernel):
    features = torch.randn(4, 6, 3, 4)
    defense = FD(SHAPE, 10, kernel=kernel)
    for is_open in (False, True):
        defense.zero_grad()
        (defense(features).features * torch.randn(4, 6, 3, 4)).sum().backward()
        reached = {name for name, parameter in defense.named_parameters() if parameter.grad.any()}
        gate = {"norm.weight", "norm.bias"}
        assert reached == ({name for name, _ in defense.named_parameters()} if is_open else gate)
        nn.init.ones_(defense.norm.weight)


@pytest.mark.parametrize(("size", "smaller"), [((3, 4), 6), ((2, 2), 4)])
def test_dot_products_take_the_smaller_matrix(size, smaller):
    with FlopCounterMode(display=False) as counter:
        dot_product_mean(torch.randn(2, 6, *size))
    # two products of 6 channels by the pixels by the smaller of both, two operations each
    assert counter.get_total_flops() == 2 * 2 * 2 * 6 * size[0] * size[1] * smaller


def test_embeddings_start_small_and_have_half_the_channels():
    defense = FD(FeatureShape(256, 4, 4), 10)
    for conv in (defense.theta, defense.phi):
        assert conv.weight.shape == (128, 256, 1, 1)
        assert conv.weight.std().item() == pytest.approx(0.01, rel=0.03)
        assert conv.bias is None
    assert defense.project.bias is None
    assert FD(FeatureShape(1, 4, 4), 10)(torch.randn(2, 1, 4, 4)).features.shape == (2, 1, 4, 4)


def test_equal_pixels_are_left_as_they_are_by_every_mean():
    features = torch.rand(2, 6, 1, 1).expand(2, 6, 3, 5)
    theta, phi = torch.randn(2, 2, 3, 3, 5)
    for found in (attended(theta, phi, features), local_mean(features), local_median(features)):
        torch.testing.assert_close(found, features)
    length = features[:, :, :1, :1].square().sum(1, keepdim=True)
    torch.testing.assert_close(dot_product_mean(features), length * features)


def test_a_median_drops_an_outlier_and_a_mean_spreads_it():
    features = torch.zeros(1, 1, 5, 5)
    features[0, 0, 2, 2] = 9
    assert not local_median(features).any()
    wanted = torch.zeros(5, 5)
    wanted[1:4, 1:4] = 1
    assert torch.equal(local_mean(features)[0, 0], wanted)


def test_an_unknown_kernel_is_refused():
    with pytest.raises(ValueError, match=r"no FD kernel named 'dots'; close names: \['dot'") as caught:
        FD(SHAPE, 10, kernel="dots")
    assert "\n" not in str(caught.value)

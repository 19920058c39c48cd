"""Where in an image the parts of the separated features see its class (the paper's Figure 1)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fsr_lab.analysis.study import Findings, Study
from fsr_lab.core.crafting import crafting
from fsr_lab.core.route import Part, Route
from fsr_lab.core.suggest import unknown
from fsr_lab.core.types import Attack
from fsr_lab.model.points import find_module, parse_point

Target = Literal["label", "predicted"]
NATURAL = "natural"
"""The map of a naturally trained network on the clean image."""


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Grad-CAM (Selvaraju et al., 2017, arXiv:1610.02391) of the main head, each part in the place of f~.

    METHOD 6.5: alpha_c is the mean over positions of d score / d F_c, and the map ReLU(sum_c alpha_c F_c), divided by
    its largest value. F is a part of the attacked image's features; beside them the deployed network's map of the clean
    image, and that of a naturally trained network, if one is given. For ResNet-18, whose head is linear behind a mean,
    alpha_c is W_yc / (H W): the tests hold it against this closed form. Maps of 4x4 are easily over-read, so that they
    are quantified as well: how much of a map lies in the middle of the image, and how it correlates with the map of the
    clean image by the deployed network.

    Arrays: `maps` float32 (M, n, H, W) in [0, 1], a map without any attention is nought; `clean` and `adversarial`
    uint8 (n, C, h, w) images; `labels` and `predicted` int64 (n,), the latter of the attacked image; `centre` and
    `correlation` float64 (M, n), NaN where a map is constant. Settings: `maps`, the names of the M.

    Args:
        attack: on the deployed network.
        parts: that go on in turn; those that an ablation lacks are left out.
        target: whose score: the label's, or of the class that the deployed network predicts for the attacked image.
        images: how many, from the first of the test images.
        point: of the FSR; None is the only one.

    Raises:
        ValueError: an unknown target, or no images.
    """

    attack: Attack
    parts: Sequence[Part] = ("f_plus", "f_minus", "f_tilde_minus", "f_tilde")
    target: Target = "label"
    images: int = 200
    point: str | None = None

    def __post_init__(self) -> None:
        if self.target not in get_args(Target):
            raise ValueError(unknown("target", self.target, get_args(Target)))
        if self.images < 1:
            raise ValueError(f"expected analysis.images of at least 1, got {self.images}")

    def __call__(self, study: Study) -> Findings:
        """Return the maps and what they amount to.

        Raises:
            ValueError: there is no such FSR, or it stands where no layer's output can be read.
        """
        point = study.site(self.point)
        layer = parse_point(point)
        if layer.place != "out":
            raise ValueError(f"attention maps are of a layer's output, and the FSR at {point!r} is not at one")
        views: dict[str, nn.Module] = {
            part: study.model.routed({point: Route(part=part)}) for part in study.parts(point, self.parts)
        }
        rows: dict[str, list[Tensor]] = {}
        kept: dict[str, list[Tensor]] = {}
        count = 0
        for x, x_adv, y in study.attacked(self.attack, "attention"):
            x, x_adv, y = (each[: self.images - count] for each in (x, x_adv, y))
            with torch.no_grad():
                predicted = study.model(x_adv).argmax(1)
            wanted = y if self.target == "label" else predicted
            found = {"clean image": grad_cam(study.model, study.model.backbone, layer.module, x, y)}
            for part, view in views.items():
                found[part] = grad_cam(view, study.model.backbone, layer.module, x_adv, wanted)
            if study.other is not None:
                found[NATURAL] = grad_cam(study.other, study.other.backbone, layer.module, x, y)
            for name, own in found.items():
                rows.setdefault(name, []).append(own)
            for name, tensor in {"clean": x, "adversarial": x_adv, "labels": y, "predicted": predicted}.items():
                kept.setdefault(name, []).append(tensor)
            count += len(y)
            if count >= self.images:
                break
        maps: dict[str, NDArray[np.float32]] = {name: torch.cat(own).cpu().numpy() for name, own in rows.items()}
        stacked = np.stack(list(maps.values()))
        arrays: dict[str, NDArray[Any]] = {"maps": stacked, **_quantified(maps)}
        for name, tensors in kept.items():
            whole = torch.cat(tensors).cpu()
            arrays[name] = (whole * 255).round().to(torch.uint8).numpy() if whole.ndim == 4 else whole.numpy()
        settings = {"maps": list(maps), "target": self.target, "attack": repr(self.attack), "point": point}
        return Findings(arrays, settings)


def grad_cam(network: nn.Module, backbone: nn.Module, layer: str, x: Tensor, classes: Tensor) -> Tensor:
    """Return (n, H, W) Grad-CAM maps of a layer's output, as the network passes it on, each divided by its maximum.

    Args:
        network: maps images to logits through the backbone.
        backbone: owns the layer.
        layer: its name.
        x: (n, C, H, W) images.
        classes: (n,) whose scores.

    Raises:
        ImportError: captum is not installed.
    """
    try:
        from captum.attr import LayerGradCam
    except ImportError as err:
        raise ImportError("attention maps need an extra: pip install 'fsr-lab[analysis]'") from err
    with crafting(network) as deployed:
        method = LayerGradCam(deployed, find_module(backbone, layer))
        maps: Tensor = method.attribute(x.clone().requires_grad_(), target=classes, relu_attributions=True).detach()
    maps = maps.squeeze(1).float()
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)


def _quantified(maps: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float64]]:
    """Return `centre` and `correlation`, (M, n) each."""
    reference = maps["clean image"]
    centre = [_centre(values) for values in maps.values()]
    correlation = [_correlation(values, reference) for values in maps.values()]
    return {"centre": np.stack(centre), "correlation": np.stack(correlation)}


def _centre(maps: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return (n,) the share of each map's sum in the middle half of height and width; a quarter is what chance has."""
    _, height, width = maps.shape
    rows, columns = (slice(size // 4, size - size // 4) for size in (height, width))
    whole = maps.sum((1, 2), dtype=np.float64)
    middle = maps[:, rows, columns].sum((1, 2), dtype=np.float64)
    share: NDArray[np.float64] = np.divide(middle, whole, out=np.full(len(maps), np.nan), where=whole > 0)
    return share


def _correlation(maps: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return (n,) Pearson's correlation over positions; NaN where a map is constant or another size."""
    if maps.shape != others.shape:
        return np.full(len(maps), np.nan)
    one, other = (each.reshape(len(each), -1).astype(np.float64) for each in (maps, others))
    one, other = (each - each.mean(axis=1, keepdims=True) for each in (one, other))
    scale = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    inner = (one * other).sum(axis=1)
    found: NDArray[np.float64] = np.divide(inner, scale, out=np.full(len(one), np.nan), where=scale > 0)
    return found

"""What the mask of a trained FSR looks like: how dense, how binary, where, and whether it depends on the class."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fsr_lab.analysis.study import Findings, Study
from fsr_lab.core.crafting import judging
from fsr_lab.core.types import Attack

BINS = 50


@dataclass(frozen=True, kw_only=True)
class MaskMaps:
    """Counts the mask's values, clean and under attack, as deployed (without noise).

    Arrays: `histogram` int64 (2, K, 50), how many units of a class's images fall in each fiftieth of [0, 1]; `where`
    float64 (2, K, H, W), the mean over a class's images and channels; `channels` float64 (2, K, C), the mean over
    images and positions; NaN for a class without images. The first index is clean, attacked. `changed` float64 (K,),
    the mean of |m(x') - m(x)|; `images` int64 (K,).

    Args:
        attack: on the deployed network.
        point: of the FSR; None is the only one.
    """

    attack: Attack
    point: str | None = None

    def __call__(self, study: Study) -> Findings:
        """Return the counts.

        Raises:
            ValueError: there is no such FSR, or it has no mask.
        """
        point = study.site(self.point)
        if not study.parts(point, ["f_plus"]):
            raise ValueError(f"the FSR at {point!r} has no mask: it was trained without Separation")
        count = study.data.num_classes
        sums: dict[str, Tensor] = {}
        images = torch.zeros(count, dtype=torch.int64)
        for x, x_adv, y in study.attacked(self.attack, "mask maps"):
            with judging(study.model):
                masks = [study.model.forward_with_aux(each).aux[point]["mask"].float().cpu() for each in (x, x_adv)]
            labels = y.cpu()
            images += torch.bincount(labels, minlength=count)
            for name, values in _tallied(masks, labels, count).items():
                sums[name] = sums[name] + values if name in sums else values
        alone = torch.where(images > 0, images.double(), torch.nan)
        arrays = {
            "histogram": sums["histogram"].long().numpy(),
            "where": (sums["where"] / alone[None, :, None, None]).numpy(),
            "channels": (sums["channels"] / alone[None, :, None]).numpy(),
            "changed": (sums["changed"] / alone).numpy(),
            "images": images.numpy(),
        }
        edges = np.linspace(0, 1, BINS + 1).tolist()
        return Findings(arrays, {"attack": repr(self.attack), "point": point, "edges": edges})


def _tallied(masks: list[Tensor], labels: Tensor, count: int) -> dict[str, Tensor]:
    """Return the batch's sums by class, in float64, of [clean, attacked] masks (N, C, H, W)."""
    one_hot = torch.nn.functional.one_hot(labels, count).double().T  # (K, N)
    both = torch.stack(masks).double()
    places = (both * BINS).long().clamp(0, BINS - 1)
    histogram = torch.stack([
        torch.stack([torch.bincount(image.flatten(), minlength=BINS) for image in one]).double() for one in places
    ])  # fmt: skip
    return {
        "histogram": one_hot @ histogram,
        "where": torch.einsum("kn,bnhw->bkhw", one_hot, both.mean(2)),
        "channels": one_hot @ both.mean((3, 4)),
        "changed": one_hot @ (both[1] - both[0]).abs().mean((1, 2, 3)),
    }

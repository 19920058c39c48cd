"""Several attacks at the same images, each on those that still withstand."""

from collections.abc import Iterable

import torch
from torch import Tensor

from fsr_lab.core.crafting import deployed_margins
from fsr_lab.core.types import Attack, Classifier


def worst_case(attacks: Iterable[Attack], model: Classifier, x: Tensor, y: Tensor) -> Tensor:
    """Return of each sample the image on which the deployed model's margin z_y - max other is smallest, (N, C, H, W).

    A sample leaves once it is misclassified, in float32 whatever the attacks craft in, as an evaluation will judge it.
    An attack draws for those that are left alone, from where the one before it stopped drawing.

    Args:
        attacks: asked for one at a time, and only as long as a sample is left.
        model: maps images to logits.
        x: (N, C, H, W) in [0, 1].
        y: (N,) int64 labels.
    """
    with torch.inference_mode(False), torch.no_grad():
        x, y = x.detach().clone(), y.clone()
        found, smallest = x.clone(), torch.full_like(y, torch.inf, dtype=x.dtype)
        for attack in attacks:
            left = (smallest > 0).nonzero().squeeze(1)
            if not len(left):
                break
            x_adv = attack(model, x[left], y[left])
            value = deployed_margins(model, x_adv, y[left]).to(smallest)
            better = value < smallest[left]
            found[left[better]], smallest[left[better]] = x_adv[better], value[better]
    return found

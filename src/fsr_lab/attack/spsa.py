"""SPSA: gradients estimated from pairs of logits in random directions."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fsr_lab.core.crafting import Policy, crafting, deployed_margins
from fsr_lab.core.losses import margin
from fsr_lab.core.passes import Passes
from fsr_lab.core.threat import Threat
from fsr_lab.core.types import Classifier
from fsr_lab.core.units import fraction, whole

ROWS = 4096
"""Images of one forward pass, at most."""
BETAS = (0.9, 0.999)


@dataclass(frozen=True, kw_only=True)
class SPSA:
    """Adam on the margin, its gradient estimated by simultaneous perturbation; logits only.

    Source: Uesato et al., 2018 (arXiv:1802.05666), Algorithm 1: directions of -1 and 1, steps by Adam, projected after
    each. A sample that is wrong, unattacked or by then, is left alone; of one not fooled the image with the smallest
    margin among the iterates is returned. Directions are drawn once for all samples, so that what is found for one does
    not depend on which others are attacked with it.

    Attributes:
        threat: the set searched.
        queries: budget of a sample, in forward passes of one image: a step costs two for each direction and one for
            where it leads; what would go beyond is not begun. Knowing who is right unattacked costs one more.
        directions: averaged over in a step.
        delta: how far each direction is tried, on the [0, 1] scale.
        learning_rate: of Adam, on the [0, 1] scale.
        policy: precision of the passes.

    Raises:
        ValueError: no direction, a budget below one step, or a size of nought.
    """

    threat: Threat
    queries: int
    directions: int
    delta: float = 0.01
    learning_rate: float = 0.01
    policy: Policy = Policy()

    is_random: ClassVar[bool] = True
    exact_on_linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        whole("directions", self.directions, 1)
        whole("queries", self.queries, 2 * self.directions + 1)
        for name in ("delta", "learning_rate"):
            object.__setattr__(self, name, fraction(getattr(self, name)))
            if getattr(self, name) == 0:
                raise ValueError(f"expected {name} above 0, got 0")

    def passes(self, num_classes: int) -> Passes:
        """Return the most passes of a sample; see `Budgeted`."""
        step = 2 * self.directions + 1
        return Passes(1 + self.queries // step * step)

    def __call__(self, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        """Return x_adv (N, C, H, W), detached, in the threat set around x.

        Args:
            model: maps images to logits.
            x: (N, C, H, W) in [0, 1].
            y: (N,) int64 labels.
        """
        return self.run_from(x, model, x, y)

    def run_from(self, start: Tensor, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        """Return what a search that begins at `start`, put into the set, finds; see `StartsAnywhere`.

        A sample that is wrong at its start is left alone there; of one not fooled the start is among the iterates.
        """
        with torch.inference_mode(False), torch.no_grad():
            x, y = x.detach().clone(), y.clone()
            image, first, second = self.threat.project(start.detach(), x), torch.zeros_like(x), torch.zeros_like(x)
            found, least = image.clone(), deployed_margins(model, image, y)
            rows = (least > 0).nonzero().squeeze(1)
            for step in range(1, self.queries // (2 * self.directions + 1) + 1):
                if not len(rows):
                    break
                with crafting(model, self.policy, example=x) as attacked, torch.no_grad():
                    gradient = self.estimate(attacked, image[rows], y[rows])
                first[rows] = torch.lerp(gradient, first[rows], BETAS[0])
                second[rows] = torch.lerp(gradient**2, second[rows], BETAS[1])
                slope = first[rows] / (1 - BETAS[0] ** step)
                size = (second[rows] / (1 - BETAS[1] ** step)).sqrt() + 1e-8
                image[rows] = self.threat.project(image[rows] - self.learning_rate * slope / size, x[rows])
                values = deployed_margins(model, image[rows], y[rows])
                lower = values < least[rows]
                found[rows[lower]], least[rows[lower]] = image[rows[lower]], values[lower]
                rows = rows[least[rows] > 0]
            return found

    def estimate(self, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        """Return the margin's estimated gradient, (N, C, H, W): its mean over the directions has no bias.

        Source: Spall, 1992, "Multivariate stochastic approximation using a simultaneous perturbation gradient
        approximation". Images are tried beyond [0, 1] where a direction leads there, as in the paper.
        """
        # before the chunks, whose width depends on how many samples are left
        draws = torch.empty(self.directions, *x.shape[1:], dtype=x.dtype, device=x.device).bernoulli_().mul_(2).sub_(1)
        total = torch.zeros_like(x)
        width = max(1, min(self.directions, ROWS // (2 * len(x))))
        for signs in draws.split(width):
            count = len(signs)
            pairs = torch.stack((x[:, None] + self.delta * signs, x[:, None] - self.delta * signs))
            values = margin(model(pairs.flatten(0, 2)), y.repeat_interleave(count).repeat(2)).reshape(2, len(x), count)
            slopes = (values[0] - values[1]) / (2 * self.delta)
            total += torch.einsum("nd,d...->n...", slopes.to(signs), signs)
        return total / self.directions

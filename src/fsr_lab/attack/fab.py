"""The fast adaptive boundary attack, FAB and FAB-T: the smallest perturbation, not the worst of one size."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from fsr_lab.core import losses
from fsr_lab.core.box_projection import onto_hyperplane
from fsr_lab.core.crafting import Policy, crafting, judging
from fsr_lab.core.precision import full_precision
from fsr_lab.core.threat import Threat
from fsr_lab.core.types import Classifier
from fsr_lab.core.units import fraction, whole


@dataclass(frozen=True, kw_only=True)
class FAB:
    """Walks along the decision boundary towards the clean image, by projections on its linearisation.

    Source: Croce and Hein, 2020 (arXiv:1907.02044), Alg. 1, as AutoAttack (arXiv:2003.01690) runs it: without the
    final search, skipping for later targets and restarts every sample that is fooled. Per step, with w the gradient
    of z_t - z_y at the iterate, both the iterate and the clean image are projected on the plane z_t = z_y within
    [0, 1]; the next iterate is a mean of the two, each overshot. An adversarial iterate is kept if it is the closest
    so far, and then pulled back towards the clean image.

    The search knows no eps. What is returned of it, per sample, is the closest adversarial image if that lies in
    the threat set; else its projection on the set, or the clean image, whichever has the lower margin. That margin,
    and whether a sample is fooled, is the deployed model's in its own precision, whatever `policy` crafts in. A
    sample misclassified from the start is left as it is.

    Deviations from AutoAttack's code, none of which makes it weaker: a projection on the set that happens to be
    adversarial counts; the excess over the plane is passed on, not recovered from its offset, which costs float32
    digits; the untargeted version takes the K - 1 gradients of the differences, not the K of the logits.

    Attributes:
        threat: the set in whose norm distances are, and in which results must lie.
        steps: number of steps per target and restart.
        targets: the classes ranked next to the true one by the clean image's logits, at most K - 1, attacked one
            after another (FAB-T); 0 takes in every step the class whose plane is nearest, with K - 1 gradients.
        restarts: runs per target; all but the first start at a random point at half of eps from the clean image.
        alpha_max: largest weight of the clean image's projection in the mean.
        eta: overshoot, as a factor of the projections' displacements.
        beta: what an adversarial iterate keeps of its perturbation.
        policy: precision of the crafting passes.

    Raises:
        ValueError: a count that is no whole number or too small, or a factor that is no number of at least 0.
    """

    threat: Threat
    steps: int = 100
    targets: int = 9
    restarts: int = 1
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    policy: Policy = Policy()

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("targets", 0), ("restarts", 1)):
            whole(name, getattr(self, name), least)
        for name in ("alpha_max", "eta", "beta"):
            object.__setattr__(self, name, fraction(getattr(self, name)))

    @property
    def exact_on_linear(self) -> bool:
        """Whether it reaches the worst point of a linear model: no, it stops at the nearest beyond the boundary."""
        return False

    @property
    def is_random(self) -> bool:
        """Whether it draws random numbers."""
        return self.restarts > 1

    def __call__(self, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        """Return x_adv (N, C, H, W), detached, in the threat set around x.

        Args:
            model: maps images to logits.
            x: (N, C, H, W) in [0, 1].
            y: (N,) int64 labels.
        """
        with judging(model) as deployed:
            x, y = x.detach().clone(), y.clone()
            x_adv, logits = x.clone(), deployed(x)
            margin = losses.margin(logits, y)
            left = (logits.argmax(1) == y).nonzero().squeeze(1)
            targets = self._ranked(logits, y)
        for target, restart in product(targets, range(self.restarts)):
            if len(left) == 0:
                break
            with crafting(model, self.policy, example=x) as attacked:
                clean, label = x[left], y[left]
                start = self._random_start(clean) if restart else clean
                found = self._closest(attacked, start, clean, label, None if target is None else target[left])
                found = self.threat.project(found, clean)
            with judging(model) as deployed:
                logits = deployed(found)
                lower, robust = losses.margin(logits, label), logits.argmax(1) == label
                better = (lower < margin[left]) | ~robust
                x_adv[left[better]], margin[left[better]] = found[better], lower[better]
                left = left[robust]
        return x_adv

    def _ranked(self, logits: Tensor, y: Tensor) -> Sequence[Tensor | None]:
        """Return the target classes (N,) in the order they are attacked; None is no target."""
        if self.targets == 0:
            return [None]
        wrong = full_precision(logits).scatter(1, y[:, None], -torch.inf)
        return wrong.topk(min(self.targets, logits.shape[1] - 1)).indices.unbind(1)

    def _random_start(self, x: Tensor) -> Tensor:
        noise = torch.rand_like(x) * 2 - 1 if self.threat.norm == "linf" else torch.randn_like(x)
        length = self._length(noise.flatten(1))
        return (x + self.threat.eps / 2 * noise / _image(length, x)).clamp(0, 1)

    def _closest(self, model: Classifier, x: Tensor, clean: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
        """Return the adversarial image closest to the clean one, which stays where none is found."""
        closest, smallest = clean, clean.new_full((len(clean),), torch.inf)
        for _ in range(self.steps):
            gap, gradient = self._boundary(model, x, y, target)
            x = self._step(x, clean, gap, gradient)
            with torch.no_grad():
                fooled = model(x).argmax(1) != y
            length = self._length((x - clean).flatten(1))
            nearer = fooled & (length < smallest)
            closest, smallest = torch.where(_image(nearer, x), x, closest), torch.where(nearer, length, smallest)
            x = torch.where(_image(fooled, x), clean + (x - clean) * self.beta, x)
        return closest

    def _step(self, x: Tensor, clean: Tensor, gap: Tensor, gradient: Tensor) -> Tensor:
        """Return the next iterate: a mean of the projections, overshot, of the iterate and of the clean image."""
        points, normal = torch.stack((x, clean)).flatten(2), gradient.flatten(1)
        excess = torch.stack((gap, gap + (normal * (points[1] - points[0])).sum(1)))
        moves = onto_hyperplane(points, normal, excess, self.threat.norm)
        here, there = self._length(moves).clamp_min(1e-8)
        alpha = (here / (here + there)).clamp_max(self.alpha_max)[:, None]
        own, other = points + self.eta * moves
        return torch.lerp(own, other, alpha).clamp(0, 1).reshape(x.shape)

    def _boundary(self, model: Classifier, x: Tensor, y: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return z_t - z_y (N,) and its gradient (N, C, H, W), t the target or the class of the nearest plane."""
        x = x.detach().requires_grad_()
        logits = full_precision(model(x))
        true = logits.gather(1, y[:, None])
        if target is not None:
            gap = (logits.gather(1, target[:, None]) - true).squeeze(1)
            (gradient,) = torch.autograd.grad(gap.sum(), x)
            return gap.detach(), gradient
        classes = logits.shape[1]
        others = (y[:, None] + torch.arange(1, classes, device=y.device)) % classes
        gap, gradient = torch.zeros_like(true).squeeze(1), torch.zeros_like(x)
        nearest = torch.full_like(gap, torch.inf)
        for each in (logits.gather(1, others) - true).unbind(1):
            (slope,) = torch.autograd.grad(each.sum(), x, retain_graph=True)
            distance = each.detach().abs() / (1e-12 + self._length(slope.flatten(1), dual=True))
            nearer = distance < nearest
            nearest, gap = torch.where(nearer, distance, nearest), torch.where(nearer, each.detach(), gap)
            gradient = torch.where(_image(nearer, x), slope, gradient)
        return gap.detach(), gradient.detach()

    def _length(self, delta: Tensor, *, dual: bool = False) -> Tensor:
        """Return the norm over the last axis, or the norm dual to it, in which distances to a plane divide."""
        order = 2.0 if self.threat.norm == "l2" else 1.0 if dual else math.inf
        length: Tensor = torch.linalg.vector_norm(delta, order, dim=-1)
        return length


def _image(values: Tensor, images: Tensor) -> Tensor:
    """Return values (N,) shaped to broadcast over images (N, C, H, W)."""
    return values.reshape(-1, *[1] * (images.ndim - 1))

"""The fast adaptive boundary attack, towards one class after the other (FAB-T) or towards the nearest."""

from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import torch
from torch import Tensor
from torch.linalg import vector_norm

from fsr_lab.core.box_projection import move_onto_plane
from fsr_lab.core.crafting import Policy, crafting, judging
from fsr_lab.core.losses import margin
from fsr_lab.core.passes import Passes
from fsr_lab.core.precision import full_precision
from fsr_lab.core.threat import Threat
from fsr_lab.core.types import Classifier
from fsr_lab.core.units import fraction, whole


@dataclass(frozen=True, kw_only=True)
class FAB:
    """Search for the nearest misclassified image: steps onto linearised boundaries, biased towards the clean image.

    Source: Croce and Hein, 2020 (arXiv:1907.02044), Algorithm 1, as AutoAttack runs it (arXiv:2003.01690), which is
    without the paper's final search. A sample is done with once it is fooled within eps; returned for it is the nearest
    misclassified image of the run that fooled it, and for every other sample the clean image.

    A step costs two forward passes and one gradient. Whether a sample is fooled is decided by the deployed model, in
    its own precision. In bfloat16 many an image lies so near to the boundary that it fools the crafting precision
    alone: these are tried once more at the edge of the threat set, straight on.

    Deviations from the released code: a step aims beyond the boundary by a rounding of every pixel, without which a
    few samples of some networks stop on its near side in float32; equal logits count as misclassified.

    Attributes:
        threat: its norm is made small; its eps is what counts as fooled.
        targets: how many wrong classes to try one by one, by rank on the clean image; all of them if there are fewer.
            0 goes for the nearest boundary at each step instead, for as many gradients as there are wrong classes.
        steps: per class and restart.
        restarts: runs per class; the first starts from the clean image, the others eps / 2 away from it.
        alpha_max: largest weight of the clean image's projection in a step.
        eta: length of a step, in ways to the boundary.
        beta: what is kept of the perturbation after a step that was misclassified.
        policy: precision of the crafting passes.

    Raises:
        ValueError: a count that is too small, alpha_max or beta over 1, or eta below it.
    """

    threat: Threat
    targets: int
    steps: int
    restarts: int
    alpha_max: float
    eta: float
    beta: float
    policy: Policy = Policy()

    exact_on_linear: ClassVar[bool] = False  # it finds the nearest misclassified point, not the worst of the set

    def __post_init__(self) -> None:
        for name, least in (("targets", 0), ("steps", 1), ("restarts", 1)):
            whole(name, getattr(self, name), least)
        for name, least, most in (("alpha_max", 0, 1), ("eta", 1, torch.inf), ("beta", 0, 1)):
            value = fraction(getattr(self, name))
            if not least <= value <= most:
                raise ValueError(f"expected {name} from {least} to {most}, got {value}")
            object.__setattr__(self, name, value)

    @property
    def is_random(self) -> bool:
        """Whether it draws random numbers."""
        return self.restarts > 1

    def passes(self, num_classes: int) -> Passes:
        """Return the most passes of a sample; see `Budgeted`."""
        wrong = num_classes - 1
        turns, rivals = (min(self.targets, wrong), 1) if self.targets else (1, wrong)
        run = Passes(2 * self.steps + 2, rivals * self.steps)
        return Passes(1).plus(run.times(turns * self.restarts))

    def __call__(self, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        """Return x_adv (N, C, H, W), detached, in the threat set around x.

        Args:
            model: maps images to logits.
            x: (N, C, H, W) in [0, 1].
            y: (N,) int64 labels.
        """
        with torch.inference_mode(False), torch.no_grad():
            # clones: inference tensors, as Lightning's validation hands them over, cannot enter autograd
            x, y = x.detach().clone(), y.clone()
            with judging(model) as deployed:
                logits = deployed(x)
            x_adv = x.clone()
            left = (margin(logits, y) > 0).nonzero().squeeze(1)
            # of those left, y is the first in rank
            others = logits.argsort(1, descending=True)[:, 1:]
            turns = others[:, : self.targets].split(1, dim=1) if self.targets else (others,)
            for rivals, restart in product(turns, range(self.restarts)):
                if not len(left):
                    break
                clean, label = x[left], y[left]
                start = self._random_start(clean) if restart else clean
                found, size = self._search(model, start, clean, label, rivals[left])
                found, fooled = self._judged(model, found, size, clean, label)
                x_adv[left[fooled]] = found[fooled]
                left = left[~fooled]
            return x_adv

    def _search(self, model: Classifier, point: Tensor, x: Tensor, y: Tensor, rivals: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nearest misclassified images and their distances (N,); where there is none, x and infinity."""
        nearest, size = x, x.new_full((len(x),), torch.inf)
        with crafting(model, self.policy, example=x) as attacked:
            for _ in range(self.steps):
                gap, normal = self._plane(attacked, point, y, rivals)
                with torch.no_grad():
                    point = self._step(point, x, gap, normal)
                    wrong = margin(attacked(point), y) <= 0
                    distance = self._length((point - x).flatten(1))
                    closer = wrong & (distance < size)
                    nearest = torch.where(_wide(closer), point, nearest)
                    size = torch.where(closer, distance, size)
                    point = torch.where(_wide(wrong), x + self.beta * (point - x), point)
        return nearest, size

    def _plane(self, attacked: Classifier, point: Tensor, y: Tensor, rivals: Tensor) -> tuple[Tensor, Tensor]:
        """Return z_rival - z_y (N,) and its gradient, shaped as x, for the rival whose boundary seems nearest."""
        point = point.detach().requires_grad_()
        logits = full_precision(attacked(point))
        # in the images' precision: a callable may compute in another
        gaps = (logits.gather(1, rivals) - logits.gather(1, y[:, None])).to(point.dtype)
        dual = 1 if self.threat.norm == "linf" else 2
        gap, normal = torch.zeros_like(gaps[:, 0]), torch.zeros_like(point)
        shortest = torch.full_like(gap, torch.inf)
        for rest, each in zip(reversed(range(gaps.shape[1])), gaps.unbind(1), strict=True):
            (gradient,) = torch.autograd.grad(each.sum(), point, retain_graph=rest > 0)
            way = each.detach().abs() / (vector_norm(gradient.flatten(1), dual, dim=1) + 1e-12)
            nearer = way < shortest
            gap, shortest = torch.where(nearer, each.detach(), gap), torch.where(nearer, way, shortest)
            normal = torch.where(_wide(nearer), gradient, normal)
        return gap, normal

    def _step(self, point: Tensor, x: Tensor, gap: Tensor, normal: Tensor) -> Tensor:
        """Return the iterate after a step: `eta` ways onto the plane, from the point and from x, mixed."""
        ends, flat = torch.stack((point, x)).flatten(2), normal.flatten(1)
        # from so near to the plane that no pixel would move, a step must still get across
        gap = gap - torch.finfo(x.dtype).eps * flat.abs().sum(1)
        excess = torch.stack((gap, gap + (flat * (ends[1] - ends[0])).sum(1)))
        ways = move_onto_plane(ends, flat, excess, self.threat.norm)
        lengths = self._length(ways).clamp_min(1e-8)
        share = (lengths[0] / lengths.sum(0)).clamp_max(self.alpha_max)
        from_point, from_clean = ends + self.eta * ways
        return torch.lerp(from_point, from_clean, share[:, None]).clamp(0, 1).reshape(x.shape)

    def _judged(self, model: Classifier, found: Tensor, size: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images, those that were misjudged moved out to the edge, and which of them fool (N,)."""
        within = size <= self.threat.eps
        with judging(model) as deployed:
            fooled = within & (margin(deployed(found), y) <= 0)
            misjudged = within & ~fooled
            if misjudged.any():
                edge = self.threat.project(x + _wide(self.threat.eps / size.clamp_min(1e-12)) * (found - x), x)
                found = torch.where(_wide(misjudged), edge, found)
                fooled |= misjudged & (margin(deployed(found), y) <= 0)
        return found, fooled

    def _random_start(self, x: Tensor) -> Tensor:
        noise = x.new_empty(x.shape)
        noise = noise.uniform_(-1, 1) if self.threat.norm == "linf" else noise.normal_()
        return (x + self.threat.eps / 2 * noise / _wide(self._length(noise.flatten(1)))).clamp(0, 1)

    def _length(self, deltas: Tensor) -> Tensor:
        """Return the norm over the last dimension."""
        # not vector_norm for linf, which takes ten times as long on a CPU
        return deltas.abs().amax(-1) if self.threat.norm == "linf" else vector_norm(deltas, dim=-1)


def _wide(values: Tensor) -> Tensor:
    """Return (N,) values shaped to broadcast over images."""
    return values[:, None, None, None]

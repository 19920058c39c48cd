"""The fast adaptive boundary attack, towards one class after the other (FAB-T) or towards the nearest."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.linalg import vector_norm

from fsr_lab.core.box_projection import move_onto_plane
from fsr_lab.core.crafting import Policy, crafting, judging
from fsr_lab.core.losses import margin
from fsr_lab.core.precision import full_precision
from fsr_lab.core.threat import Threat
from fsr_lab.core.types import Classifier
from fsr_lab.core.units import fraction, whole


@dataclass(frozen=True, kw_only=True)
class FAB:
    """Search for the nearest misclassified image: steps onto linearised boundaries, biased towards the clean image.

    Source: Croce and Hein, 2020 (arXiv:1907.02044), Algorithm 1. The order of classes and who is skipped are those of
    AutoAttack (arXiv:2003.01690), whose released code leaves out the paper's final search. A step costs two forward
    passes and one gradient. A sample is done with once it is fooled within eps.

    Returned is, of a sample that was fooled, the nearest misclassified image that the class which did it gave; of one
    that is wrong from the start, the clean image; of any other, the nearest misclassified image found, moved to the
    edge of the threat set, where its margin is lower there than on the clean image, else the clean image.

    All these decisions are made on the deployed model in its own precision. A sample that bfloat16 crafting takes
    for fooled though it is not is attacked on, and its move to the edge leads outwards.

    Deviation: the released code returns the clean image where it found nothing within eps. The edge can fool a
    sample that is just beyond; it never costs one.

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
            clean = margin(logits, y)
            nearest, size = x.clone(), x.new_full((len(x),), torch.inf)
            left = (clean > 0).nonzero().squeeze(1)
            # of those left, y is the first in rank
            others = logits.argsort(1, descending=True)[:, 1:]
            for rivals in others[:, : self.targets].split(1, 1) if self.targets else [others]:
                for restart in range(self.restarts):
                    if not len(left):
                        return nearest
                    found, distance = self._search(model, x[left], y[left], rivals[left], restart > 0)
                    fooled = _margins(model, found, y[left], distance <= self.threat.eps) <= 0
                    better = fooled | (distance < size[left])
                    nearest[left[better]], size[left[better]] = found[better], distance[better]
                    left = left[~fooled]
            edge = self._at_the_edge(x[left], nearest[left], size[left])
            worse = _margins(model, edge, y[left], size[left] < torch.inf) < clean[left]
            nearest[left] = torch.where(_wide(worse), edge, x[left])
            return nearest

    def _search(
        self, model: Classifier, x: Tensor, y: Tensor, rivals: Tensor, random_start: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the nearest misclassified images and their distances (N,); where there is none, x and infinity."""
        nearest, size = x, x.new_full((len(x),), torch.inf)
        point = self._random_start(x) if random_start else x
        with crafting(model, self.policy, example=x) as attacked:
            for _ in range(self.steps):
                gap, normal = self._plane(attacked, point, y, rivals)
                with torch.no_grad():
                    point = self._step(point, x, gap, normal)
                    wrong = attacked(point).argmax(1) != y
                    distance = vector_norm((point - x).flatten(1), self._order, dim=1)
                    closer = wrong & (distance < size)
                    nearest = torch.where(_wide(closer), point, nearest)
                    size = torch.where(closer, distance, size)
                    point = torch.where(_wide(wrong), x + self.beta * (point - x), point)
        return nearest, size

    def _plane(self, attacked: Classifier, point: Tensor, y: Tensor, rivals: Tensor) -> tuple[Tensor, Tensor]:
        """Return z_rival - z_y (N,) and its gradient, shaped as x, for the rival whose boundary seems nearest."""
        point = point.detach().requires_grad_()
        logits = full_precision(attacked(point))
        gaps = logits.gather(1, rivals) - logits.gather(1, y[:, None])
        count = gaps.shape[1]
        gap, normal = gaps[:, 0].detach(), torch.zeros_like(point)
        shortest = torch.full_like(gap, torch.inf)
        for column, rival_gap in enumerate(gaps.unbind(1)):
            (gradient,) = torch.autograd.grad(rival_gap.sum(), point, retain_graph=column + 1 < count)
            rival_gap = rival_gap.detach()
            slope = vector_norm(gradient.flatten(1), 1 if self.threat.norm == "linf" else 2, dim=1)
            way = rival_gap.abs() / (slope + 1e-12)
            nearer = way < shortest
            gap, shortest = torch.where(nearer, rival_gap, gap), torch.where(nearer, way, shortest)
            normal = torch.where(_wide(nearer), gradient, normal)
        return gap, normal

    def _step(self, point: Tensor, x: Tensor, gap: Tensor, normal: Tensor) -> Tensor:
        """Return the iterate after a step: `eta` ways onto the plane, from the point and from x, mixed."""
        ends = torch.stack((point, x)).flatten(2)
        flat = normal.flatten(1)
        excess = torch.stack((gap, gap + (flat * (ends[1] - ends[0])).sum(1)))
        ways = move_onto_plane(ends, flat, excess, self.threat.norm)
        lengths = vector_norm(ways, self._order, dim=2).clamp_min(1e-8)
        share = (lengths[0] / lengths.sum(0)).clamp_max(self.alpha_max)
        mixed = torch.lerp(*(ends + self.eta * ways), share[:, None])
        return mixed.clamp(0, 1).reshape(x.shape)

    def _random_start(self, x: Tensor) -> Tensor:
        noise = torch.empty_like(x)
        noise = noise.uniform_(-1, 1) if self.threat.norm == "linf" else noise.normal_()
        length = vector_norm(noise.flatten(1), self._order, dim=1)
        return (x + self.threat.eps / 2 * noise / _wide(length)).clamp(0, 1)

    def _at_the_edge(self, x: Tensor, x_adv: Tensor, size: Tensor) -> Tensor:
        """Return x_adv projected onto the threat set, after pushing it out to its radius if it lies within."""
        push = (self.threat.eps / size.clamp_min(1e-12)).clamp_min(1)
        return self.threat.project(x + _wide(push) * (x_adv - x), x)

    @property
    def _order(self) -> float:
        return torch.inf if self.threat.norm == "linf" else 2


def _margins(model: Classifier, x_adv: Tensor, y: Tensor, among: Tensor) -> Tensor:
    """Return the deployed model's margins of the samples in `among`, and infinity for the others; all (N,)."""
    rows = among.nonzero().squeeze(1)
    margins = x_adv.new_full((len(x_adv),), torch.inf)
    if len(rows):
        with judging(model) as deployed:
            margins[rows] = margin(deployed(x_adv[rows]), y[rows]).to(margins)
    return margins


def _wide(values: Tensor) -> Tensor:
    """Return (N,) values shaped to broadcast over images."""
    return values[:, None, None, None]

"""NAttack: learns a distribution of adversarial images from the logits of samples drawn from it."""

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

ROWS = 3000
"""Images of one forward pass, roughly: so many samples are attacked side by side as have populations that fit."""
SQUASH = 1 - 1e-6
"""Keeps the images 0 and 1 from infinity in tanh space."""
REWARD_CAP = 1000.0


@dataclass(frozen=True, kw_only=True)
class NAttack:
    """Natural evolution strategies on the mean of a Gaussian in tanh space, with logits only.

    Source: Li et al., 2019 (arXiv:1905.00441), Algorithm 1; numbers of the released CIFAR-10 code: populations of 300,
    sigma 0.1, a mean that starts at 0.001 N(0, 1) and is looked at every ten iterations. A sample that is wrong,
    unattacked or by then, is left alone.

    Differs from the released code: perturbations are clipped around the image, not around its tanh reconstruction,
    which is 5e-7 away; with `any_candidate` a member of the population that is misclassified is a success, where the
    code looks at the mean alone; rewards are of logits, where the code adds 1e-30 to probabilities. Noises are drawn
    once for all samples, so that what is found for one does not depend on which others are attacked with it (with
    `noise` it does: the defences draw for the batch). Of a sample not fooled the image with the smallest margin is
    returned.

    Attributes:
        threat: the set searched.
        queries: budget of a sample, in forward passes of one image: an iteration costs its population, a look at the
            mean one; what would go beyond is not begun. Not of the budget are the deployed model's passes: one to
            know who is right unattacked, and one for each iteration that seems to have fooled a sample.
        population: images drawn in an iteration.
        sigma: standard deviation of the Gaussian.
        alpha: learning rate.
        any_candidate: whether a misclassified member of the population is a success.
        noise: query the defences with their training noise, not the deterministic deployed model. What is found is
            judged on the deployed model.
        policy: precision of the passes.

    Raises:
        ValueError: a budget below a population and a look at the mean, a population below 2, or a rate of no size.
    """

    threat: Threat
    queries: int = 40_000
    population: int = 300
    sigma: float = 0.1
    alpha: float = 0.02
    any_candidate: bool = True
    noise: bool = False
    policy: Policy = Policy()

    is_random: ClassVar[bool] = True
    exact_on_linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        whole("population", self.population, 2)
        whole("queries", self.queries, self.population + 1)
        for name in ("sigma", "alpha"):
            object.__setattr__(self, name, fraction(getattr(self, name)))
            if getattr(self, name) == 0:
                raise ValueError(f"expected {name} above 0, got 0")

    def passes(self, num_classes: int) -> Passes:
        """Return the most passes of a sample; see `Budgeted`."""
        return Passes(1 + self.queries + self.queries // self.population)

    def __call__(self, model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        """Return x_adv (N, C, H, W), detached, in the threat set around x.

        Args:
            model: maps images to logits.
            x: (N, C, H, W) in [0, 1].
            y: (N,) int64 labels.
        """
        with torch.inference_mode(False), torch.no_grad():
            x, y = x.detach().clone(), y.clone()
            found = x.clone()
            # every group draws from this one seed: groups that end early leave the others' draws alone
            seed = int(torch.randint(2**62, ()))
            right = (deployed_margins(model, x, y) > 0).nonzero().squeeze(1)
            for rows in right.split(max(1, ROWS // self.population)):
                found[rows] = self._search(model, x[rows], y[rows], torch.Generator(x.device).manual_seed(seed))
            return found

    def _search(self, model: Classifier, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """Return what was found for samples attacked side by side; a fooled one leaves."""
        found = _Found(x, y)
        anchor = ((2 * x - 1) * SQUASH).atanh()
        shape = x.shape[1:]
        mean = (0.001 * torch.randn(shape, generator=generator, dtype=x.dtype, device=x.device)).repeat(len(x), 1, 1, 1)
        rows = torch.arange(len(x), device=x.device)
        spent, iteration = 0, 0
        while len(rows):
            looks = iteration % 10 == 0
            if spent + looks + self.population > self.queries:
                break
            with crafting(model, self.policy, example=x, noise=self.noise) as attacked, torch.no_grad():
                if looks:
                    image = self._image(anchor[rows] + mean[rows], x[rows])
                    found.note(rows, image, margin(attacked(image), y[rows]))
                draws = torch.randn(self.population, *shape, generator=generator, dtype=x.dtype, device=x.device)
                points = (anchor + mean)[rows, None] + self.sigma * draws
                images = self._image(points, x[rows, None])
                values = margin(attacked(images.flatten(0, 1)), y[rows].repeat_interleave(self.population))
                values = values.reshape(len(rows), -1)
                if self.any_candidate:
                    least, best = values.min(1)
                    found.note(rows, images[torch.arange(len(rows)), best], least)
            mean[rows] = mean[rows] + self.step(draws, values)
            spent, iteration = spent + looks + self.population, iteration + 1
            rows = found.confirmed_right(model, rows)
        return found.images

    def step(self, draws: Tensor, margins: Tensor) -> Tensor:
        """Return the mean's update: alpha / (population sigma) times the sum of the draws, weighted by advantage.

        A reward is -0.5 times the margin, floored at 0; its advantage is standardised within the population, so that
        one without any spread moves nothing.

        Args:
            draws: (population, C, H, W) standard normal, the same for all samples.
            margins: (N, population) z_y - max other.
        """
        rewards = -0.5 * margins.clamp(0, REWARD_CAP)
        # from the first: the mean of equal rewards is not quite one of them, and dividing by 1e-7 would show it
        rewards = rewards - rewards[:, :1]
        spread = rewards.std(1, unbiased=False, keepdim=True)
        advantages = (rewards - rewards.mean(1, keepdim=True)) / (spread + 1e-7)
        return self.alpha / (self.population * self.sigma) * torch.einsum("np,p...->n...", advantages.to(draws), draws)

    def _image(self, points: Tensor, x: Tensor) -> Tensor:
        images = points.tanh() / 2 + 0.5
        if images.ndim == x.ndim == 4:
            return self.threat.project(images, x)
        flat = self.threat.project(images.flatten(0, 1), x.expand_as(images).flatten(0, 1))
        return flat.reshape(images.shape)


class _Found:
    """Each sample's image with the smallest margin so far."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.images, self.y = x.clone(), y
        self.margins = torch.full_like(y, torch.inf, dtype=x.dtype)

    def note(self, rows: Tensor, images: Tensor, margins: Tensor) -> None:
        """Take in an image of each of these samples and its margin."""
        lower = margins < self.margins[rows]
        self.images[rows[lower]], self.margins[rows[lower]] = images[lower], margins[lower].to(self.margins)

    def confirmed_right(self, model: Classifier, rows: Tensor) -> Tensor:
        """Return the samples to go on with: those still right, and those that the deployed model takes for right."""
        suspects = rows[self.margins[rows] <= 0]
        if not len(suspects):
            return rows
        wrong = deployed_margins(model, self.images[suspects], self.y[suspects]) <= 0
        self.margins[suspects[~wrong]] = torch.inf  # misled by rounding or by noise: what comes next may be better
        return rows[~torch.isin(rows, suspects[wrong])]

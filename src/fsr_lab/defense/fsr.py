"""Feature Separation and Recalibration (Kim et al., CVPR 2023, arXiv:2303.13846)."""

from typing import ClassVar, NamedTuple, get_args

import torch
from torch import Tensor

from fsr_lab.core.defense import FeatureDefense
from fsr_lab.core.precision import full_precision
from fsr_lab.core.route import Part, Route, with_norm_of
from fsr_lab.core.types import Criterion, DefenseOutput, FeatureShape, Forward
from fsr_lab.defense import fsr_options as options
from fsr_lab.defense.fsr_losses import (
    Heads,
    LossOn,
    Term,
    Wrong,
    criterion_term,
    cross_entropy_term,
    forwards_read,
    wrong_class,
)
from fsr_lab.defense.fsr_nets import RecLast, Run, bottleneck, head, run, run_again
from fsr_lab.defense.masks import EvalMask, Granularity, drawn, has_temperature, learnt_mask, pooled
from fsr_lab.defense.unlearnt_masks import coin_flips, fixed_half, unlearnt_mask


class Parts(NamedTuple):
    """A feature map taken apart; every tensor is (N, C, H, W), and None is what an ablation leaves out.

    Attributes:
        score: r, the Separation Net's output, unbounded.
        mask: m in [0, 1], near 1 where the feature is held to be robust.
        f_plus: m * f, the robust activations.
        f_minus: (1 - m) * f, the non-robust ones.
        f_tilde_minus: f_minus + (1 - m) * R(f_minus), recalibrated (Eq. 4's argument).
        f_tilde: f_plus + f_tilde_minus, what goes on.
    """

    score: Tensor | None
    mask: Tensor | None
    f_plus: Tensor | None
    f_minus: Tensor | None
    f_tilde_minus: Tensor | None
    f_tilde: Tensor


class FSR(FeatureDefense):
    """Separates a feature map into robust and non-robust activations by a learnt mask, and repairs the latter.

    Eq. 2's two-class Gumbel softmax is sigmoid((r + logistic noise) / tau): the same distribution, stable in every
    precision, one draw instead of two. At evaluation the noises cancel and the mask is sigmoid(r / tau).
    Losses: Eq. 3 (`sep`: f+ must tell the class, f- the most likely wrong one, y'), Eq. 4 (`rec`: the repaired f-
    must tell the class), both on auxiliary logits of one shared head, both on the adversarial forward, without
    stop-gradients.

    Decisions where paper and released code differ (the code's is the default): the last block of the
    Recalibration Net is a bare convolution (`rec_last="conv_bn_relu"` is the paper read literally); the auxiliary
    head is one linear layer (`aux_hidden` gives the paper's MLP).

    Ablations are values of the options; what an option leaves unused is not built, its attribute is None, and what
    it does not compute is not filed. Without Separation, f~ = f + R(f), and `rec` reads f~. Without Recalibration,
    f~ = f+. A mask that nothing is learnt for has no Separation Net.

    Routes: every part that the options leave, any of them rescaled, a given mask, and of a learnt one "stop",
    "straight_through", `backward_tau`, and `tau` where its values depend on a temperature. No mask is detached here:
    "through" would be "exact", and is not known.

    Auxiliary tensors: `p_plus`, `p_minus`, `p_tilde` (N, K) logits, and the fields of `Parts`; without Separation
    only `p_tilde` and `f_tilde`; without Recalibration neither `p_tilde` nor `f_tilde_minus`; no `score` without a
    learnt mask.

    Args:
        shape: of the feature; sizes only the channels, any height and width will do later.
        num_classes: K, at least 2.
        tau: temperature of the mask.
        width: bottleneck channels of both nets.
        lambda_sep: weight of `sep`.
        lambda_rec: weight of `rec`.
        noise: "training" follows this module's `training` flag; "always" and "never" do not.
        rec_last: the Recalibration Net's last block.
        aux_hidden: hidden units of the auxiliary head; None is one linear layer.
        use_sep: Separation: the mask and `sep`.
        use_rec: Recalibration: R and `rec`.
        mask: learnt: "gumbel" is Eq. 2, "gumbel_literal" is Eq. 2 as the released code computes it, "sigmoid" is
            s(r), "tempered" s(r / tau), "hard_st" 1[r > 0] straight through, "gumbel_st" the same of a noisy r.
            Not learnt: "random" draws each unit with probability 1/2 (its mean, 1/2, where no noise is drawn),
            "fixed_random" keeps one random half of the channels, "magnitude" and "inverse_magnitude" the larger and
            the smaller half of |f| of each sample, "attribution" the channels that raise the auxiliary logit (of the
            label in training, of its own prediction otherwise), "ones" everything, "zeros" nothing.
        eval_mask: in eval mode, "own" is the training mask without its noise, which for Eq. 2 is "tempered",
            s(r / tau); "sigmoid" is s(r), "hard" 1[r > 0], "mc" the mean over `mc_samples` values of the noise.
        mc_samples: K of "mc".
        granularity: one score, or size, per "unit", or its mean per "channel" or per "spatial" position.
        wrong: y', which f- must tell: the most likely wrong class by the "final" logits or by p_plus ("aux"), a
            "random" wrong one, the "least_likely", "uniform" over all classes, or "none": no such term.
        loss_on: the forward that the terms are computed on; "both" is the mean of the two.
        heads: "own" losses, or the strategy's "criterion" on each auxiliary logits, as CAS does.
        detach_f_for_aux: the terms do not train what comes before this module.
        detach_mask_in_rec: `rec` does not train the mask. Both stop gradients in training mode alone.

    Raises:
        ValueError: a number out of range, an unknown option, or options that contradict each other.
    """

    training_noise: ClassVar[bool] = True
    follows_backbone_init: ClassVar[bool] = True
    routes: ClassVar[frozenset[str]] = frozenset(
        {*get_args(Part), "stop", "straight_through", "tau", "backward_tau", "mask", "rescaled"}
    )

    def __init__(
        self,
        shape: FeatureShape,
        num_classes: int,
        *,
        tau: float = 0.1,
        width: int = 64,
        lambda_sep: float = 1.0,
        lambda_rec: float = 1.0,
        noise: options.Noise = "training",
        rec_last: RecLast = "conv",
        aux_hidden: int | None = None,
        use_sep: bool = True,
        use_rec: bool = True,
        mask: options.Mask = "gumbel",
        eval_mask: EvalMask = "own",
        mc_samples: int = 20,
        granularity: Granularity = "unit",
        wrong: Wrong = "final",
        loss_on: LossOn = "adv",
        heads: Heads = "own",
        detach_f_for_aux: bool = False,
        detach_mask_in_rec: bool = False,
    ) -> None:
        super().__init__()
        options.check_names(
            noise=noise, rec_last=rec_last, mask=mask, eval_mask=eval_mask, granularity=granularity, wrong=wrong,
            loss_on=loss_on, heads=heads,
        )  # fmt: skip
        options.check_numbers(
            num_classes=num_classes, tau=tau, width=width, mc_samples=mc_samples, aux_hidden=aux_hidden,
            lambda_sep=lambda_sep, lambda_rec=lambda_rec,
        )  # fmt: skip
        options.check_combination(
            use_sep=use_sep, use_rec=use_rec, noise=noise, mask=mask, eval_mask=eval_mask, granularity=granularity,
            wrong=wrong, loss_on=loss_on, heads=heads, detach_mask_in_rec=detach_mask_in_rec,
        )  # fmt: skip
        self.tau, self.noise, self.mask, self.granularity = tau, noise, mask, granularity
        self.eval_mask, self.mc_samples = eval_mask, mc_samples
        self.lambda_sep, self.lambda_rec = lambda_sep, lambda_rec
        self.use_sep, self.use_rec = use_sep, use_rec
        self.wrong, self.loss_on, self.heads = wrong, loss_on, heads
        self.detach_f_for_aux, self.detach_mask_in_rec = detach_f_for_aux, detach_mask_in_rec
        self.channels = shape.channels
        learnt = use_sep and mask in options.LEARNT
        self.separation = bottleneck(shape.channels, width, last="conv") if learnt else None
        self.recalibration = bottleneck(shape.channels, width, last=rec_last) if use_rec else None
        self.aux_head = head(shape.channels, num_classes, aux_hidden)
        self.fixed_mask: Tensor | None
        self.register_buffer("fixed_mask", fixed_half(shape.channels) if mask == "fixed_random" else None)
        self._declare()

    def forward(
        self,
        features: Tensor,
        targets: Tensor | None = None,
        *,
        route: Route | None = None,
        want_aux: bool = True,
    ) -> DefenseOutput:
        """Separate, recalibrate and recombine; see `FeatureDefense.forward`. Only mask="attribution" uses labels."""
        if features.shape[1] != self.channels:
            raise ValueError(f"expected features of {self.channels} channels, got {features.shape[1]}")
        route, score = route or Route(), self.score(features)
        noise = self.draw(features, score)
        parts = self.separate(features, score, noise, route, targets)
        passed = self._part(route.part, features, parts)
        if route.rescaled:
            passed = with_norm_of(features, passed)
        if not want_aux:
            return DefenseOutput(passed.to(features.dtype), {})
        read = self._read_by_head(features, parts, noise, route, targets)
        tested = {
            "p_plus": read.f_plus,
            "p_minus": read.f_minus,
            "p_tilde": read.f_tilde_minus if self.use_sep else read.f_tilde,
        }
        heads = {
            key: full_precision(self.aux_head(part.mean((2, 3)))) for key, part in tested.items() if part is not None
        }
        filed = {key: part for key, part in parts._asdict().items() if part is not None}
        # a copy: the network's next operation may work in place, and what is filed must not change
        return DefenseOutput(passed.to(features.dtype, copy=True), heads | filed)

    def score(self, features: Tensor, *, run: Run = run) -> Tensor | None:
        """Return r in float32, pooled as the granularity says, or None if it is not learnt; `run` runs the net."""
        if self.separation is None:
            return None
        return pooled(full_precision(run(self.separation, features)), self.granularity)

    def draw(self, features: Tensor, score: Tensor | None) -> Tensor | None:
        """Draw the mask's noise, if it is to have some now."""
        if not (self.eval_noise or (self.training_noise and self.training)):
            return None
        if score is None:
            return coin_flips(pooled(full_precision(features.detach()), self.granularity))
        return drawn(self.mask, score.detach())

    def separate(
        self,
        features: Tensor,
        score: Tensor | None,
        noise: Tensor | None,
        route: Route,
        targets: Tensor | None = None,
        *,
        run: Run = run,
    ) -> Parts:
        """Compute all parts of (N, C, H, W) features; masks in float32 whatever the features are.

        Args:
            features: f.
            score: what `score` gave for them.
            noise: what `draw` gave for them.
            route: how to run.
            targets: (N,) labels, for mask="attribution".
            run: runs the Recalibration Net.
        """
        repair = self.recalibration
        if not self.use_sep:
            assert repair is not None
            return Parts(None, None, None, None, None, full_precision(features) + run(repair, features))
        mask = self._mask(features, score, noise, route, targets).expand_as(features)
        score = None if score is None else score.expand_as(features)
        f_plus, f_minus = mask * features, (1 - mask) * features
        if repair is None:
            return Parts(score, mask, f_plus, f_minus, None, f_plus)
        f_tilde_minus = f_minus + (1 - mask) * run(repair, f_minus)
        return Parts(score, mask, f_plus, f_minus, f_tilde_minus, f_plus + f_tilde_minus)

    def auxiliary_loss(
        self, adv: Forward, y: Tensor, point: str, *, clean: Forward | None, criterion: Criterion
    ) -> dict[str, Tensor]:
        """Return `sep` (Eq. 3) and `rec` (Eq. 4), weighted, batch means, as far as they exist.

        Raises:
            ValueError: `loss_on` reads clean images, and there are none.
        """
        if self.heads == "criterion":
            return self._terms(adv, y, point, criterion_term(adv, clean, point, criterion))
        each = [
            self._terms(forward, y, point, cross_entropy_term(forward, point))
            for forward in forwards_read(self.loss_on, adv, clean)
        ]
        return {name: torch.stack([terms[name] for terms in each]).mean() for name in each[0]}

    def _terms(self, forward: Forward, y: Tensor, point: str, term: Term) -> dict[str, Tensor]:
        terms = {}
        if self.use_sep:
            sep = term("p_plus", y)
            if self.wrong != "none":
                sep = sep + term("p_minus", wrong_class(self.wrong, forward.logits, forward.aux[point]["p_plus"], y))
            terms["sep"] = self.lambda_sep * sep
        if self.use_rec:
            terms["rec"] = self.lambda_rec * term("p_tilde", y)
        return terms

    def _mask(
        self, features: Tensor, score: Tensor | None, noise: Tensor | None, route: Route, targets: Tensor | None
    ) -> Tensor:
        """Return m, in a shape that expands to that of the features."""
        if route.mask is not None:
            return full_precision(route.mask.to(features.device))
        if score is not None:
            as_trained = self.training or noise is not None or self.eval_mask == "own"
            kind = self.mask if as_trained else self.eval_mask
            return learnt_mask(kind, score, noise, self.tau, route, samples=self.mc_samples)
        y = targets if self.training else None
        return unlearnt_mask(
            self.mask, full_precision(features.detach()), granularity=self.granularity, noise=noise,
            fixed=self.fixed_mask, head=self.aux_head, y=y,
        )  # fmt: skip

    def _part(self, name: Part, features: Tensor, parts: Parts) -> Tensor:
        """Return the part that goes on."""
        if name == "f":
            return features
        if name == "f_plus_r" and self.recalibration is not None:
            return features + run(self.recalibration, features)
        part: Tensor | None = getattr(parts, name, None)
        if part is None:
            raise ValueError(f"this FSR has no part {name!r}; it knows the routes {sorted(self.routes)}")
        return part

    def _read_by_head(
        self, features: Tensor, parts: Parts, noise: Tensor | None, route: Route, targets: Tensor | None
    ) -> Parts:
        """Return the parts that the auxiliary head reads: the same values, under the options' stop-gradients.

        A net that must not pass a gradient on to its input runs again. In eval mode nothing is stopped: an attack on
        the auxiliary logits keeps its gradient.
        """
        if not self.training:
            return parts
        if self.detach_f_for_aux:
            features = features.detach()
            score = self.score(features, run=run_again)
            parts = self.separate(features, score, noise, route, targets, run=run_again)
        if self.detach_mask_in_rec and parts.mask is not None and self.recalibration is not None:
            left = 1 - parts.mask.detach()
            repaired = left * features + left * run_again(self.recalibration, left * features)
            parts = parts._replace(f_tilde_minus=repaired)
        return parts

    def _declare(self) -> None:
        """Declare per instance what the options leave of the class's word."""
        noisy = self.use_sep and self.mask in options.NOISY
        self.eval_noise = noisy and self.noise == "always"  # type: ignore[misc]
        self.training_noise = noisy and self.noise == "training"  # type: ignore[misc]
        self.needs_clean = self.loss_on != "adv"  # type: ignore[misc]
        routes = {"f", "f_tilde", "rescaled"}
        if self.use_sep:
            routes |= {"f_plus", "f_minus", "mask"}
        if self.use_rec:
            routes |= {"f_plus_r", "f_tilde_minus"} if self.use_sep else {"f_plus_r"}
        if self.separation is not None:
            routes |= {"stop", "straight_through", "backward_tau"}
            if has_temperature(self.mask if self.eval_mask == "own" else self.eval_mask):
                routes.add("tau")
        self.routes = frozenset(routes)  # type: ignore[misc]

"""Feature Separation and Recalibration (Kim et al., CVPR 2023, arXiv:2303.13846)."""

from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from fsr_lab.core.defense import FeatureDefense
from fsr_lab.core.losses import most_likely_wrong
from fsr_lab.core.route import MaskGradient, Part, Route, mask_by
from fsr_lab.core.suggest import unknown
from fsr_lab.core.types import Criterion, DefenseOutput, FeatureShape, Forward

Noise = Literal["training", "always", "never"]
RecLast = Literal["conv", "conv_bn", "conv_bn_relu"]


class Parts(NamedTuple):
    """A feature map taken apart; every tensor is (N, C, H, W).

    Attributes:
        score: r, the Separation Net's output, unbounded.
        mask: m in [0, 1], near 1 where the feature is held to be robust.
        f_plus: m * f, the robust activations.
        f_minus: (1 - m) * f, the non-robust ones.
        f_tilde_minus: f_minus + (1 - m) * R(f_minus), recalibrated (Eq. 4's argument).
        f_tilde: f_plus + f_tilde_minus, what goes on.
    """

    score: Tensor
    mask: Tensor
    f_plus: Tensor
    f_minus: Tensor
    f_tilde_minus: Tensor
    f_tilde: Tensor


class FSR(FeatureDefense):
    """Separates a feature map into robust and non-robust activations by a learnt mask, and repairs the latter.

    Eq. 2's two-class Gumbel softmax is sigmoid((r + logistic noise) / tau): the same distribution, stable in every
    precision, one draw instead of two. At evaluation the noises cancel and the mask is sigmoid(r / tau).
    Losses: Eq. 3 (`sep`: f+ must tell the class, f- the most likely wrong one), Eq. 4 (`rec`: the repaired f- must
    tell the class), both on auxiliary logits of one shared head, both on the adversarial forward, without
    stop-gradients.

    Decisions where paper and released code differ (the code's is the default): the last block of the
    Recalibration Net is a bare convolution (`rec_last="conv_bn_relu"` is the paper read literally); the auxiliary
    head is one linear layer (`aux_hidden` gives the paper's MLP).

    Auxiliary tensors: `p_plus`, `p_minus`, `p_tilde` (N, K) logits, and the fields of `Parts`.

    Args:
        shape: of the feature; sizes only the channels, any height and width will do later.
        num_classes: K.
        tau: temperature of the mask.
        width: bottleneck channels of both nets.
        lambda_sep: weight of `sep`.
        lambda_rec: weight of `rec`.
        noise: "training" follows this module's `training` flag; "always" and "never" do not.
        rec_last: the Recalibration Net's last block.
        aux_hidden: hidden units of the auxiliary head; None is one linear layer.

    Raises:
        ValueError: a temperature or width that is not positive, a negative weight, an unknown option.
    """

    training_noise: ClassVar[bool] = True
    follows_backbone_init: ClassVar[bool] = True
    routes: ClassVar[frozenset[str]] = frozenset(
        {*get_args(Part), *get_args(MaskGradient), "tau", "backward_tau", "mask"}
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
        noise: Noise = "training",
        rec_last: RecLast = "conv",
        aux_hidden: int | None = None,
    ) -> None:
        super().__init__()
        _check_options(tau=tau, width=width, aux_hidden=aux_hidden, lambda_sep=lambda_sep, lambda_rec=lambda_rec)
        for kind, value, known in (("noise", noise, get_args(Noise)), ("rec_last", rec_last, get_args(RecLast))):
            if value not in known:
                raise ValueError(unknown(f"FSR {kind}", value, known))
        self.tau = tau
        self.lambda_sep = lambda_sep
        self.lambda_rec = lambda_rec
        self.noise = noise
        # declared per instance here: what the option leaves of the class's word
        self.eval_noise = noise == "always"  # type: ignore[misc]
        self.training_noise = noise == "training"  # type: ignore[misc]
        self.channels = shape.channels
        self.separation = _bottleneck(shape.channels, width, last="conv")
        self.recalibration = _bottleneck(shape.channels, width, last=rec_last)
        self.aux_head = _head(shape.channels, num_classes, aux_hidden)

    def forward(
        self,
        features: Tensor,
        targets: Tensor | None = None,
        *,
        route: Route | None = None,
        want_aux: bool = True,
    ) -> DefenseOutput:
        """Separate, recalibrate and recombine; see `FeatureDefense.forward`. Labels are not used."""
        if features.shape[1] != self.channels:
            raise ValueError(f"expected features of {self.channels} channels, got {features.shape[1]}")
        route = route or Route()
        parts = self.separate(features, route)
        if route.part == "f_plus_r":
            passed = features + self.recalibration(features)
        else:
            passed = features if route.part == "f" else getattr(parts, route.part)
        if not want_aux:
            return DefenseOutput(passed.to(features.dtype), {})
        heads = {
            "p_plus": self._auxiliary_logits(parts.f_plus),
            "p_minus": self._auxiliary_logits(parts.f_minus),
            "p_tilde": self._auxiliary_logits(parts.f_tilde_minus),
        }
        # a copy: the network's next operation may work in place, and what is filed must not change
        return DefenseOutput(passed.to(features.dtype, copy=True), heads | parts._asdict())

    def separate(self, features: Tensor, route: Route) -> Parts:
        """Compute all parts of (N, C, H, W) features; masks in float32 whatever the features are."""
        score = self.separation(features)
        score = score if score.dtype == torch.float64 else score.float()
        noisy = self.noise == "always" or (self.noise == "training" and self.training)
        mask = mask_by(route, score + logistic_noise(score) if noisy else score, self.tau)
        f_plus, f_minus = mask * features, (1 - mask) * features
        f_tilde_minus = f_minus + (1 - mask) * self.recalibration(f_minus)
        return Parts(score, mask, f_plus, f_minus, f_tilde_minus, f_plus + f_tilde_minus)

    def auxiliary_loss(
        self, adv: Forward, y: Tensor, point: str, *, clean: Forward | None, criterion: Criterion
    ) -> dict[str, Tensor]:
        """Return `sep` (Eq. 3) and `rec` (Eq. 4) of the adversarial forward, weighted, batch means."""
        aux = adv.aux[point]
        wrong = most_likely_wrong(adv.logits, y)
        sep = functional.cross_entropy(aux["p_plus"], y) + functional.cross_entropy(aux["p_minus"], wrong)
        rec = functional.cross_entropy(aux["p_tilde"], y)
        return {"sep": self.lambda_sep * sep, "rec": self.lambda_rec * rec}

    def _auxiliary_logits(self, part: Tensor) -> Tensor:
        logits: Tensor = self.aux_head(part.mean((2, 3)))
        return logits if logits.dtype == torch.float64 else logits.float()


def logistic_noise(score: Tensor) -> Tensor:
    """Draw Logistic(0, 1), the difference of two Gumbel draws, in the score's shape and type.

    The uniform draw keeps one rounding step away from 0 and 1, where the logit is infinite.
    """
    return torch.rand_like(score).logit(eps=torch.finfo(score.dtype).eps)


def _bottleneck(channels: int, width: int, *, last: RecLast) -> nn.Sequential:
    """Three 3x3 convolutions, channels -> width -> width -> channels."""
    layers: list[nn.Module] = []
    for c_in in (channels, width):
        layers += [nn.Conv2d(c_in, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    layers.append(nn.Conv2d(width, channels, 3, padding=1, bias=False))
    if last != "conv":
        layers.append(nn.BatchNorm2d(channels))
    if last == "conv_bn_relu":
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def _head(channels: int, num_classes: int, hidden: int | None) -> nn.Module:
    if hidden is None:
        return nn.Linear(channels, num_classes)
    return nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, num_classes))


def _check_options(*, tau: float, width: int, aux_hidden: int | None, lambda_sep: float, lambda_rec: float) -> None:
    if not tau > 0:
        raise ValueError(f"expected tau above 0, got {tau}")
    for name, channels in (("width", width), ("aux_hidden", aux_hidden)):
        if channels is not None and channels < 1:
            raise ValueError(f"expected {name} of at least 1, got {channels}")
    for name, value in (("lambda_sep", lambda_sep), ("lambda_rec", lambda_rec)):
        if not value >= 0:
            raise ValueError(f"expected {name} of at least 0, got {value}")

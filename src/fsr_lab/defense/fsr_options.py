"""What FSR's options may be, and which of them contradict each other."""

import math
from typing import Literal, get_args

from fsr_lab.core.suggest import unknown
from fsr_lab.core.units import nonnegative, whole
from fsr_lab.defense.fsr_losses import Heads, LossOn, Wrong
from fsr_lab.defense.fsr_nets import RecLast
from fsr_lab.defense.masks import EvalMask, Granularity, LearntMask
from fsr_lab.defense.unlearnt_masks import UnlearntMask

Noise = Literal["training", "always", "never"]
Mask = Literal[LearntMask, UnlearntMask]

LEARNT = frozenset(get_args(LearntMask))
NOISY = frozenset({"gumbel", "gumbel_literal", "gumbel_st", "random"})
POOLED = LEARNT | {"random", "magnitude", "inverse_magnitude"}
"""The masks that exist per unit, per channel and per position."""


def check_names(
    *,
    noise: Noise,
    rec_last: RecLast,
    mask: Mask,
    eval_mask: EvalMask,
    granularity: Granularity,
    wrong: Wrong,
    loss_on: LossOn,
    heads: Heads,
) -> None:
    """Refuse a name that an option does not have.

    Raises:
        ValueError: as above; names the nearest.
    """
    for option, value, known in (
        ("noise", noise, Noise),
        ("rec_last", rec_last, RecLast),
        ("mask", mask, Mask),
        ("eval_mask", eval_mask, EvalMask),
        ("granularity", granularity, Granularity),
        ("wrong", wrong, Wrong),
        ("loss_on", loss_on, LossOn),
        ("heads", heads, Heads),
    ):
        if value not in get_args(known):
            raise ValueError(unknown(f"FSR {option}", value, get_args(known)))


def check_numbers(
    *,
    num_classes: int,
    tau: float,
    width: int,
    mc_samples: int,
    aux_hidden: int | None,
    lambda_sep: float,
    lambda_rec: float,
) -> None:
    """Refuse numbers out of their range.

    Raises:
        ValueError: as above.
    """
    if num_classes < 2:
        raise ValueError(f"expected at least 2 classes, as FSR teaches f- a wrong one, got {num_classes}")
    if not (isinstance(tau, (int, float)) and 0 < tau < math.inf):
        raise ValueError(f"expected tau above 0, got {tau}")
    for name, count in (("width", width), ("mc_samples", mc_samples), ("aux_hidden", aux_hidden)):
        if count is not None:
            whole(name, count, 1)
    for name, value in (("lambda_sep", lambda_sep), ("lambda_rec", lambda_rec)):
        nonnegative(name, value)


def check_combination(
    *,
    use_sep: bool,
    use_rec: bool,
    noise: Noise,
    mask: Mask,
    eval_mask: EvalMask,
    granularity: Granularity,
    wrong: Wrong,
    loss_on: LossOn,
    heads: Heads,
    detach_mask_in_rec: bool,
) -> None:
    """Refuse options that contradict each other, or of which one would silently do nothing.

    Raises:
        ValueError: as above.
    """
    learnt = use_sep and mask in LEARNT
    contradictions = (
        (not use_sep and not use_rec, "FSR with neither Separation nor Recalibration is the network; use defense=none"),
        (
            not use_sep and (mask, eval_mask, granularity, wrong) != ("gumbel", "own", "unit", "final"),
            "use_sep=false leaves no mask and no y': leave mask, eval_mask, granularity and wrong at their defaults",
        ),
        (use_sep and use_rec and mask == "ones", "mask=ones leaves nothing to recalibrate; set use_rec=false as well"),
        (
            use_sep and not use_rec and mask == "zeros",
            "mask=zeros without Recalibration passes nothing on; use_rec=true",
        ),
        (
            eval_mask != "own" and not learnt,
            f"mask={mask} is the same at evaluation; eval_mask={eval_mask} needs a learnt mask, such as gumbel",
        ),
        (
            granularity != "unit" and mask not in POOLED,
            f"mask={mask} has a granularity of its own; leave granularity=unit",
        ),
        (
            noise == "always" and not (use_sep and mask in NOISY),
            f"noise=always needs a mask that draws: {sorted(NOISY)}",
        ),
        (
            noise == "always" and eval_mask != "own",
            "noise=always draws at evaluation too, which leaves eval_mask nothing to do; set one of them",
        ),
        (
            heads == "criterion" and (loss_on != "adv" or wrong == "uniform"),
            "heads=criterion reads what the criterion reads, and with labels: leave loss_on=adv, and wrong a class",
        ),
        (
            detach_mask_in_rec and not (learnt and use_rec),
            "detach_mask_in_rec needs Recalibration and a learnt mask; leave it false",
        ),
    )
    for contradictory, message in contradictions:
        if contradictory:
            raise ValueError(message)

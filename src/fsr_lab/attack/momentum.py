"""MI: gradients gathered over the steps, so that the direction does not follow every turn of one network's loss."""

from torch import Tensor, finfo


def gathered(gradient: Tensor, before: Tensor | None, decay: float) -> Tensor:
    """Return decay * before + gradient / mean |gradient|, per sample: what a step follows in place of the gradient.

    Source: MI-FGSM (Dong et al., 2018, arXiv:1710.06081), Eq. 6. Differs, as its code does: the mean of the absolute
    values for their sum, which scales all that is gathered alike. Without decay the scale is the whole difference, and
    a step asks for the direction alone.

    Args:
        gradient: (N, C, H, W) of this step.
        before: what the step before returned; None in the first.
        decay: how much of it stays; 1 keeps all.
    """
    scale = gradient.abs().mean((1, 2, 3), keepdim=True)
    unit = gradient / scale.clamp_min(finfo(gradient.dtype).tiny)
    return unit if before is None else decay * before + unit

"""BatchNorm statistics estimated anew, on the network as it is deployed."""

from collections.abc import Iterable

import torch.distributed as dist
from torch import Tensor, nn

from fsr_lab.core.crafting import judging


def recalibrate(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace BatchNorm's running statistics by the mean of those of some batches.

    Averaged weights need it, as the statistics of an average are not the average of the statistics; and FSR's own
    BatchNorms, which training shows random masks and evaluation deterministic ones. So BatchNorms alone are in training
    mode, and everything else as deployed: masks deterministic, no labels, no dropout, float32. Under DDP all
    ranks end with the mean over ranks. A network without BatchNorm is left alone, and no batch is asked for.

    Args:
        model: maps (N, C, H, W) to logits; modes and momenta are put back.
        batches: (N, C, H, W) in [0, 1] each; asked for one by one, so that they may be crafted against what
            is estimated so far. The model's own statistics stand until the first has been seen.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    with judging(model) as deployed:
        try:
            for norm in norms:
                # without a momentum the batches' mean is kept, of which the first overwrites what was there
                norm.training, norm.momentum = True, None
                norm.get_buffer("num_batches_tracked").zero_()
            for x in batches:
                deployed(x)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        for statistic in [norm.get_buffer(name) for norm in norms for name in ("running_mean", "running_var")]:
            dist.all_reduce(statistic)
            statistic /= dist.get_world_size()

"""One rank of two: a few training steps of several combinations under DDP, which refuses unused parameters.

Run by test_ddp.py as `python ddp_steps.py RANK PORT FOLDER COMBINATION...`, a combination being overrides joined by
spaces. The file that rank 0 leaves, {combination: losses}, is what the test looks at.
"""

import json
import sys
from datetime import timedelta
from pathlib import Path

import torch
from hydra import compose, initialize_config_module
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fsr_lab.core.types import Progress
from fsr_lab.engine.build import build_model, build_module

TOY = ("dataset=toy", "model=tiny_cnn", "model.batch_norm=true", "paths.run=unused", "label=unused")


class Step(nn.Module):
    """What Lightning wraps: the whole of a training step, as one forward."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x, y):
        out = self.module.training_output(x, y, Progress(9, 10, 0))
        return torch.stack(list(out.losses.values())).sum()


def losses(overrides, rank):
    """Return the loss of three steps."""
    with initialize_config_module("fsr_lab.conf", version_base="1.3"):
        cfg = compose("train", overrides=[*TOY, *overrides.split()])
    module = build_module(cfg, build_model(cfg)).train()
    step = DistributedDataParallel(Step(module))  # find_unused_parameters is False
    optimizer = torch.optim.SGD(module.model.parameters(), lr=0.05)
    found = []
    for number in range(3):
        torch.manual_seed(10 * number + rank)
        loss = step(torch.rand(6, 3, 8, 8), torch.randint(0, 4, (6,)))
        optimizer.zero_grad()
        loss.backward()  # an unused parameter of the step before shows here, or in the next forward
        optimizer.step()
        for modifier in module.modifiers:
            modifier.after_optimizer_step(module)
        found.append(loss.item())
    weights = torch.cat([parameter.detach().flatten() for parameter in module.model.parameters()])
    both = [torch.empty_like(weights) for _ in range(2)]
    torch.distributed.all_gather(both, weights)
    if not torch.equal(*both):
        raise SystemExit(f"{overrides}: the ranks' weights differ")
    return found


def main():
    rank, port, folder, *combinations = sys.argv[1:]
    torch.set_num_threads(1)
    store = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group(
        "gloo", init_method=store, rank=int(rank), world_size=2, timeout=timedelta(seconds=60)
    )
    found = {}
    for overrides in combinations:
        try:
            found[overrides] = losses(overrides, int(rank))
        except RuntimeError as err:
            raise SystemExit(f"{overrides}: {err}") from err
    if rank == "0":
        (Path(folder) / "losses.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()

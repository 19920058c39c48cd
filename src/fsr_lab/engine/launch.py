"""Several devices in one run: the ranks are started by torchrun from the run's resolved config.

Lightning's own relaunch re-reads the command line, and under multirun would start the whole sweep again.
"""

import subprocess
import sys
from pathlib import Path

from omegaconf import DictConfig


def ranks_wanted(cfg: DictConfig) -> int:
    """Return how many processes of this node train together."""
    devices = cfg.trainer.devices
    if isinstance(devices, int) and devices >= 1:
        return devices
    raise ValueError(f"expected trainer.devices to be a number of at least 1, got {devices!r}")


def fit_in_ranks(run: Path, ranks: int) -> None:
    """Fit the run's config in `ranks` processes and wait for them.

    Raises:
        RuntimeError: a rank failed; its own message stands above.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}",
               "-m", "fsr_lab.engine.rank", str(run)]  # fmt: skip
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise RuntimeError(f"a rank of {run} failed (exit code {done.returncode}): its message stands above")

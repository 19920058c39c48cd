"""Several devices in one run: the ranks are started by torchrun from the run's resolved config.

Lightning's own relaunch re-reads the command line, and under multirun would start the whole sweep again.
"""

import subprocess
import sys
from pathlib import Path

from omegaconf import DictConfig

from fsr_lab.callback.stop import InterruptedRunError

INTERRUPTED = "interrupted"
"""A file of this name tells that the ranks were asked to stop; torchrun's own exit code cannot."""


def ranks_wanted(cfg: DictConfig) -> int:
    """Return how many processes of this node train together."""
    devices = cfg.trainer.devices
    if isinstance(devices, int) and devices >= 1:
        return devices
    raise ValueError(f"expected trainer.devices to be a number of at least 1, got {devices!r}")


def fit_in_ranks(run: Path, ranks: int) -> None:
    """Fit the run's config in `ranks` processes and wait for them, through a Ctrl-C too: they save first.

    Raises:
        InterruptedRunError: the ranks were asked to stop.
        RuntimeError: a rank failed; its own message stands above.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}",
               "-m", "fsr_lab.engine.rank", str(run)]  # fmt: skip
    marker = run / INTERRUPTED
    marker.unlink(missing_ok=True)
    with subprocess.Popen(command) as ranks_process:
        while True:
            try:
                code = ranks_process.wait()
                break
            except KeyboardInterrupt:
                continue  # the ranks got it too
    if marker.exists():
        text = marker.read_text()
        marker.unlink()
        raise InterruptedRunError(text)
    if code:
        raise RuntimeError(f"a rank of {run} failed (exit code {code}): its message stands above")

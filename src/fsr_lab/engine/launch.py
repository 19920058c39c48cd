"""Several devices in one run: the ranks are started by torchrun from the run's resolved config.

Lightning's own relaunch re-reads the command line, and under multirun would start the whole sweep again.
"""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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
    """Fit the run's config in `ranks` processes and wait for them, through a Ctrl-C and a SIGTERM too: they save first.

    Raises:
        InterruptedRunError: the ranks were asked to stop.
        RuntimeError: a rank failed; its own message stands above.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}",
               "-m", "fsr_lab.engine.rank", str(run)]  # fmt: skip
    marker = run / INTERRUPTED
    marker.unlink(missing_ok=True)
    with _deaf_to(
        signal.SIGUSR2
    ):  # by which Slurm tells all processes that the time is up; the ranks hear of it from us
        ranks_process = subprocess.Popen(command)
    with ranks_process, _passing_on(ranks_process):
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


@contextmanager
def _deaf_to(number: signal.Signals) -> Iterator[None]:
    """Let what is started within a block ignore a signal."""
    if threading.current_thread() is not threading.main_thread():  # where alone Python sets handlers
        yield
        return
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)


@contextmanager
def _passing_on(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """Pass a SIGTERM to this process on to another one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: process.send_signal(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

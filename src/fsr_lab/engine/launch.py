"""Several devices in one run: the ranks are started by torchrun from the run's resolved config.

Lightning's own relaunch re-reads the command line, and under multirun would start the whole sweep again.
"""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from omegaconf import DictConfig

from fsr_lab.callback.stop import InterruptedRunError

INTERRUPTED = "interrupted"
"""A file of this name tells that the ranks were asked to stop; torchrun's own exit code cannot."""

WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)
"""What batch systems send, to this process or to every process of a job."""
FOR_ALL = (signal.SIGTERM, *WARNINGS)
"""What this process passes on to the ranks, as SIGTERM; a terminal's Ctrl-C reaches them without it."""


class Stopped(NamedTuple):
    """Ranks that were asked to stop, and did: by which signal to this process, if it was one, and what they said."""

    number: signal.Signals | None
    text: str


def ranks_wanted(cfg: DictConfig) -> int:
    """Return how many processes of this node train together."""
    devices = cfg.trainer.devices
    if isinstance(devices, int) and devices >= 1:
        return devices
    raise ValueError(f"expected trainer.devices to be a number of at least 1, got {devices!r}")


def fit_in_ranks(run: Path, ranks: int) -> None:
    """Fit the run's config in `ranks` processes and wait for them; asked to stop, they save first.

    As in one process, a handler that a program round the training had set is called once they have, and decides: where
    it returns, they are started again.

    Raises:
        InterruptedRunError: the ranks were asked to stop.
        RuntimeError: a rank failed; its own message stands above.
    """
    while (stopped := _fit(run, ranks)) is not None:
        number, text = stopped
        decides = None if number is None else signal.getsignal(number)
        if number is None or not callable(decides) or decides is signal.default_int_handler:
            raise InterruptedRunError(text)
        decides(number, None)


def _fit(run: Path, ranks: int) -> Stopped | None:
    """Let the ranks train, once, and return what stopped them; None is that they are done."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}",
               "-m", "fsr_lab.engine.rank", str(run)]  # fmt: skip
    marker = run / INTERRUPTED
    marker.unlink(missing_ok=True)
    with _passing_on(command) as (process, asked):
        while True:
            try:
                code = process.wait()
                break
            except KeyboardInterrupt:
                continue  # the ranks got it too
    number = asked[0] if asked else None
    if marker.exists():
        text = marker.read_text()
        marker.unlink()
        return Stopped(number, text)
    if number is not None:
        return Stopped(number, f"{number.name} before the first step or after the last: the last checkpoint stands")
    if code:
        raise RuntimeError(f"a rank of {run} failed (exit code {code}): its message stands above")
    return None


@contextmanager
def _passing_on(command: list[str]) -> Iterator[tuple["subprocess.Popen[bytes]", list[signal.Signals]]]:
    """Start a command and yield it with the signals that this process has got since; it passes on the first."""
    asked: list[signal.Signals] = []
    try:
        before = {number: signal.getsignal(number) for number in FOR_ALL}
        for number in WARNINGS:  # which it inherits: torchrun would die of one, and orphan its ranks
            signal.signal(number, signal.SIG_IGN)
    except ValueError:  # not in the main thread, where Python takes no handlers
        before = {}

    def pass_on(number: int, frame: FrameType | None) -> None:
        if not asked:
            process.terminate()
        asked.append(signal.Signals(number))

    try:
        with subprocess.Popen(command) as process:
            for number in before:
                signal.signal(number, pass_on)
            yield process, asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""The house's one piece of ambient state: what a forward pass carries to and from the taps in its middle.

A thread-local set in `__init__`, not as a class attribute: Dynamo guards on the instance's dict, and a class
attribute shadowed later fails that guard.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from fsr_lab.core.route import Route


@dataclass
class Tape:
    """Carried through one forward pass.

    Attributes:
        targets: in, (N,) labels for label-conditioned defences.
        route: in, {point: how the defence is to run}; empty is as deployed.
        want_aux: in, whether the taps file their auxiliary tensors.
        aux: out, {point: aux} in order of execution.
    """

    targets: Tensor | None = None
    route: Mapping[str, Route] = field(default_factory=dict)
    want_aux: bool = True
    aux: dict[str, Mapping[str, Tensor]] = field(default_factory=dict)


class _Ambient(threading.local):
    def __init__(self) -> None:
        self.tape: Tape | None = None


_AMBIENT = _Ambient()


def current() -> Tape | None:
    """Return the tape open in this thread. Read it once per call: each read is a Dynamo guard."""
    return _AMBIENT.tape


@contextmanager
def recording(tape: Tape) -> Iterator[Tape]:
    """Open a tape for this thread; closed in any event.

    Raises:
        RuntimeError: one is open already; tapes do not nest.
    """
    if _AMBIENT.tape is not None:
        raise RuntimeError("a forward_with_aux is already running in this thread: a defence must not start another")
    _AMBIENT.tape = tape
    try:
        yield tape
    finally:
        _AMBIENT.tape = None

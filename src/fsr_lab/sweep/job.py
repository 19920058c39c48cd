"""One job of a sweep as its own directory tells of it: the only truth, which the sweep's index is derived from."""

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from fsr_lab.core.files import write_text

JOB, LOG = "job.json", "job.log"
"""Files of a job's directory: what is known of it, and what it printed."""

QUEUED, RUNNING, FINISHED, FAILED, INTERRUPTED = "queued", "running", "finished", "failed", "interrupted"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a job was to do, and how far it got.

    Attributes:
        number: its place in the sweep.
        overrides: all that it was composed from, in Hydra's words.
        state: queued | running | finished | failed | interrupted, as it was last written: of a job that was killed it
            still says running, and the run's lock tells better.
        started: when its last attempt began, as ISO 8601 in UTC.
        ended: when that ended.
        attempts: how often it began.
        code: the exit code that it would have had alone.
        error: one line of cause and cure.
        where: pid and host of the process that last ran it.
        results: figures of its validation and records, by name.
    """

    number: int
    overrides: tuple[str, ...]
    state: str = QUEUED
    started: str = ""
    ended: str = ""
    attempts: int = 0
    code: int = 0
    error: str = ""
    where: tuple[int, str] = (0, "")
    results: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, run: Path) -> Self | None:
        """Return the job of a directory, or None where there is none."""
        path = run / JOB
        if not path.is_file():
            return None
        about = json.loads(path.read_text())
        about |= {"overrides": tuple(about["overrides"]), "where": tuple(about["where"])}
        return cls(**about)

    def write(self, run: Path) -> None:
        """Write it into its directory."""
        write_text(run / JOB, json.dumps(asdict(self), indent=1) + "\n")

    def begun(self) -> Self:
        """Return the job as this process begins it."""
        return replace(
            self, state=RUNNING, started=now(), ended="", attempts=self.attempts + 1, code=0, error="",
            where=(os.getpid(), socket.gethostname()),
        )  # fmt: skip

    def over(self, state: str, *, code: int = 0, error: str = "", results: Mapping[str, float] | None = None) -> Self:
        """Return the job as it ended."""
        return replace(
            self, state=state, ended=now(), code=code, error=error, results=self.results if results is None else results
        )

    @property
    def seconds(self) -> float | None:
        """How long the last attempt took, where both its ends are known."""
        if not (self.started and self.ended):
            return None
        return (datetime.fromisoformat(self.ended) - datetime.fromisoformat(self.started)).total_seconds()


def now() -> str:
    """Return the time as ISO 8601 in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def last_lines(run: Path, count: int = 3) -> list[str]:
    """Return the last lines of a job's log, without the one that its error already is."""
    path = run / LOG
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    return [line for line in lines if line.strip() and not line.startswith("fsr: ")][-count:]

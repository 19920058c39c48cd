"""Loggers that are each wrong in a way of their own: no test by itself."""

import sys
import time
from typing import Any

from lightning.pytorch.loggers import Logger

FAULTS = ("init", "log_metrics", "log_hyperparams", "finalize", "attributes", "after_save_checkpoint")
MANNERS = ("raises", "hangs", "exits")


def misbehave(manner: str) -> None:
    if manner == "hangs":
        time.sleep(1e6)
    if manner == "exits":
        sys.exit(3)
    raise RuntimeError("a bad tracker")


class Bad(Logger):
    """Misbehaves in one method, or in whatever attribute of it is read."""

    def __init__(self, where: str, manner: str) -> None:
        super().__init__()
        self.where, self.manner = where, manner
        self._at("init")

    def _at(self, where: str) -> None:
        if where == self.where:
            misbehave(self.manner)

    def __getattribute__(self, name: str) -> Any:
        if name in ("name", "version", "save_dir", "log_dir", "root_dir", "experiment", "group_separator"):
            self._at("attributes")
        return super().__getattribute__(name)

    name, version = "bad", 0
    experiment = None

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self._at("log_metrics")

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self._at("log_hyperparams")

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        self._at("after_save_checkpoint")

    def finalize(self, status: str) -> None:
        self._at("finalize")


class Slow(Logger):
    """Takes its time for every metric."""

    name, version = "slow", 0

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        time.sleep(1.0)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass


def overrides() -> dict[str, list[str]]:
    """Return, for each bad tracker by its name, what adds it to a command line."""
    found = {
        f"{where}_{manner}": [f"+logger.{where}_{manner}.{key}={value}" for key, value in about.items()]
        for where in FAULTS
        for manner in MANNERS
        for about in [{"_target_": "bad_trackers.Bad", "where": where, "manner": manner}]
    }
    for name, target in {
        "slow": "bad_trackers.Slow",
        "missing": "no_such_package.Logger",
        "absent": "lightning.pytorch.loggers.CometLogger",  # its package is not installed
    }.items():
        found[name] = [f"+logger.{name}._target_={target}"]
    return found

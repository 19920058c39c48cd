"""One call of the command line: its exit code, and how it tells of errors."""

import os
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from fsr_lab.arguments import config_folder
from fsr_lab.core.files import explained
from fsr_lab.core.suggest import unknown

BUG = 1
FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130

PLUGINS = {
    "hydra/launcher/joblib": ("launcher=joblib_gpus", "joblib"),
    "hydra/launcher/submitit_slurm": ("launcher=slurm", "slurm"),
    "hydra/launcher/ray": ("launcher=ray", "ray"),
    "hydra/sweeper/optuna": ("hparams_search=optuna", "tune"),
}
"""What needs a package beyond the base: how it was asked for, and the extra that brings it."""


@dataclass
class Session:
    """What a verb knows of its surroundings, and what it leaves to say.

    Attributes:
        command: as it was typed.
        sweep: the folder of the sweep that this is a job of.
        exit_code: the worst so far.
    """

    command: str
    sweep: Path | None = None
    exit_code: int = 0

    def fail(self, err: BaseException) -> None:
        """Print one line of cause and cure; raise our own bugs, and whatever FSR_TRACEBACK=1 asks to see."""
        if shows_trace(err):
            raise err
        self.tell(err)

    def tell(self, err: BaseException) -> None:
        """Print one line of cause and cure, after the trace where one is to be seen; nothing is raised."""
        if shows_trace(err):
            traceback.print_exception(err)
        self.exit_code = max(self.exit_code, code_of(err))
        print(f"fsr: {one_line(err)}", file=sys.stderr, flush=True)


def code_of(err: BaseException) -> int:
    """Return the exit code that tells of an error."""
    if is_interruption(err):
        return INTERRUPTED
    return BAD_INPUT if is_expected(err) else BUG


def is_interruption(err: BaseException) -> bool:
    """Tell whether somebody asked the work to stop."""
    return isinstance(err, KeyboardInterrupt) or type(err).__name__ == "InterruptedRunError"


def one_line(err: BaseException) -> str:
    """Return an error's cause and cure in one line, out of the wrappings that Hydra puts around it."""
    if isinstance(err, MissingConfigException) and err.missing_cfg_file:
        if err.missing_cfg_file in PLUGINS:
            asked, extra = PLUGINS[err.missing_cfg_file]
            return f"{asked} needs a package that is not installed: pip install 'fsr-lab[{extra}]'"
        group, _, name = err.missing_cfg_file.partition("/")
        folder = config_folder() / group  # options of nested groups too
        known = [path.relative_to(folder).with_suffix("").as_posix() for path in folder.glob("**/*.yaml")]
        if known := known or list(err.options or []):  # Hydra tells none where the group takes a list
            return unknown(group, name, known)
    if isinstance(err, OverrideParseException):
        return f"cannot read the override {err.override!r}: {str(err).splitlines()[0]}; quote brackets and commas"
    while isinstance(err, InstantiationException) and err.__cause__ is not None:
        err = err.__cause__
    if isinstance(err.__cause__, OSError) and str(err).startswith("Unable to configure handler"):
        err = err.__cause__  # Hydra opens a job's log before the job begins
    if isinstance(err, OSError):
        err = explained(err)
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    if isinstance(err, HydraException):
        return " ".join(lines)
    return lines[0] if lines else type(err).__name__


def shows_trace(err: BaseException) -> bool:
    """Tell whether an error is to be shown with its trace: a bug is, and all are where FSR_TRACEBACK=1 asks."""
    return os.environ.get("FSR_TRACEBACK") == "1" or not (is_expected(err) or is_interruption(err))


def is_expected(err: BaseException) -> bool:
    """Tell whether an error speaks of the user's input or machine; anything else is a bug."""
    kinds = (ValueError, TypeError, OSError, RuntimeError, ImportError, HydraException, OmegaConfBaseException)
    return isinstance(err, kinds) or type(err).__module__.startswith("lightning.")

"""What W&B is told of a run: whose it is, where it goes, and how it must not behave."""

import atexit
import netrc
import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from fsr_lab.core.files import write_text

RUN_ID = "wandb_id"
"""The file of a run directory that keeps W&B's id of it, so that a resumed run continues it."""
LONGEST_TAG = 64
"""W&B refuses longer ones."""


def completed(
    node: Mapping[str, Any], *, about: Mapping[str, Any], run: Path, job: str, patience: float
) -> dict[str, Any]:
    """Return a W&B logger's config with all that is not for the user to write.

    Args:
        node: of `conf/logger/wandb.yaml`, resolved.
        about: the run's resolved config.
        run: its directory.
        job: "train" or "evaluate".
        patience: seconds that W&B may upload for at the end of the run, and of the process.

    Raises:
        ValueError: `offline` is something else than true, false and auto.
    """
    node = dict(node)
    settings = {
        "console": "off",  # it would stand between the run and its output
        "silent": True,
        "reinit": "create_new",  # a job of a multirun is a run of its own, whatever became of the one before
        "finish_timeout": patience,
    }
    words = [about["dataset"]["name"], *str(about.get("label") or "").split("+")]
    tags = dict.fromkeys(str(tag)[:LONGEST_TAG] for tag in (*(node.pop("tags", None) or ()), *words) if tag)
    return {
        **node,
        "name": node.get("name") if about.get("label") else None,  # made of the label; without one W&B draws a name
        # not Lightning's `offline`, which sets a variable of the whole process for good
        "mode": _mode(node.pop("offline", "auto")),
        "id": node.get("id") or run_id(run),
        "job_type": node.get("job_type") or job,
        "tags": list(tags),
        "settings": settings | dict(node.get("settings") or {}),
    }


def has_key() -> bool:
    """Tell whether this user has W&B's key, in WANDB_API_KEY or in a netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def run_id(run: Path) -> str | None:
    """Return W&B's id of a run directory, drawn at its first call; None where W&B's own agent has given one."""
    if os.environ.get("WANDB_SWEEP_ID") and os.environ.get("WANDB_RUN_ID"):
        return None
    path = run / RUN_ID
    if not path.is_file():
        write_text(path, secrets.token_hex(4) + "\n")
    return path.read_text().strip()


def leave_service_behind() -> None:
    """Have this process end without waiting for W&B's own, which keeps on disk what it could not upload.

    At exit W&B waits for that process without a limit: a server that does not answer would hold up the run's end.
    """
    atexit.register(_end_service)  # after W&B has registered its own hook, and so run before it


def _end_service() -> None:
    # W&B offers no other way to either; where these names change, its own hook waits as it likes
    setup = getattr(sys.modules.get("wandb.sdk.wandb_setup"), "_singleton", None)
    connection = getattr(setup, "_connection", None)
    process = getattr(getattr(connection, "_proc", None), "_process", None)
    unregister = getattr(connection, "_cleanup", None)
    if process is not None and unregister is not None:
        unregister()
        process.kill()


def _mode(offline: object) -> str:
    """Return W&B's mode: forced by true or false, otherwise by WANDB_MODE, otherwise online where there is a key."""
    if isinstance(offline, bool):
        return "offline" if offline else "online"
    if offline != "auto":
        raise ValueError(f"expected logger.wandb.offline to be true, false or auto, got {offline!r}")
    return os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")

"""One rank of a data-parallel run; started by torchrun, not by hand."""

import os
import sys
from pathlib import Path
from typing import cast

from omegaconf import DictConfig, OmegaConf

from fsr_lab.callback.stop import InterruptedRunError
from fsr_lab.core.files import write_text
from fsr_lab.engine.checkpoints import CONFIG
from fsr_lab.engine.launch import INTERRUPTED
from fsr_lab.engine.quiet import hush_lightning
from fsr_lab.engine.run import fit, opened_data
from fsr_lab.engine.tracking import opened_trackers


def main(run: Path) -> int:
    """Fit the run directory's resolved config as this rank and return the exit code; rank 0 speaks for all."""
    hush_lightning()
    cfg = cast(DictConfig, OmegaConf.load(run / CONFIG))
    is_first = os.environ.get("RANK") == "0"
    try:
        with opened_trackers(cfg, run, "train") as trackers:
            fit(cfg, run, opened_data(cfg), trackers)
    except InterruptedRunError as err:
        if is_first:
            write_text(run / INTERRUPTED, str(err))
        return 130
    except (ValueError, TypeError, OSError, RuntimeError) as err:
        if is_first:
            print(f"fsr: {err}", file=sys.stderr, flush=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

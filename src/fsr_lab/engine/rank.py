"""One rank of a data-parallel run; started by torchrun, not by hand."""

import sys
from pathlib import Path
from typing import cast

from omegaconf import DictConfig, OmegaConf

from fsr_lab.engine.run import CONFIG, fit, opened_data


def main(run: Path) -> None:
    """Fit the run directory's resolved config as this rank."""
    cfg = cast(DictConfig, OmegaConf.load(run / CONFIG))
    fit(cfg, run, opened_data(cfg))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""One shard of an evaluation in a process of its own; started by `evaluating`, not by hand."""

import sys
from pathlib import Path
from typing import cast

from omegaconf import DictConfig, OmegaConf

from fsr_lab.engine.checkpoints import CONFIG
from fsr_lab.engine.evaluating import evaluate_weights, shard_of
from fsr_lab.engine.run import opened_data


def main(run: Path, shard: str, weights: str, average: str) -> int:
    """Do one shard of the evaluation that a run directory's resolved config tells and return the exit code."""
    cfg = cast(DictConfig, OmegaConf.load(run / CONFIG))
    try:
        source = (Path(weights), average or None) if weights else None
        evaluate_weights(cfg, source, opened_data(cfg), name="", command="", run=run, shard=shard_of(shard))
    except KeyboardInterrupt:
        return 130
    except (ValueError, TypeError, OSError, RuntimeError) as err:
        print(f"fsr: shard {shard}: {err}", file=sys.stderr, flush=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))

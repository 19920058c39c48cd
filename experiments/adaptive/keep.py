"""Keep finished runs here: their configuration, provenance, and last weights rounded to float16.

What is evaluated is what is kept, and small enough for git.

    python experiments/adaptive/keep.py RUN... [--into experiments/adaptive]
"""

import argparse
import json
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from fsr_lab.core.files import write_atomically, write_text
from fsr_lab.core.provenance import without_places
from fsr_lab.engine.checkpoints import CONFIG, checkpoint_path
from fsr_lab.engine.run import read_status
from fsr_lab.engine.safe_reading import read_safely

HERE = Path("experiments/adaptive")  # from the root of the repository: a kept config names no machine's folders


def keep(run: Path, into: Path) -> Path:
    """Write a run's directory anew below a folder, and return it.

    Raises:
        ValueError: the run is not finished.
    """
    if read_status(run).get("state") != "finished":
        raise ValueError(f"{run} is not finished; the command that began it continues it")
    kept, state = into / run.name, read_safely(checkpoint_path(run, "last"))["state_dict"]
    rounded = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    path = kept / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda stream: torch.save({"state_dict": rounded}, stream))
    cfg = OmegaConf.load(run / CONFIG)
    assert isinstance(cfg, DictConfig)
    text = (run / CONFIG).read_text().replace(str(run), str(kept)).replace(str(cfg.paths.data), "data")
    text = text.replace(f"source: {cfg.dataset.source}", "source: null")
    write_text(kept / CONFIG, text)
    about = json.loads((run / "provenance.json").read_text())
    write_text(kept / "provenance.json", json.dumps(without_places(about), indent=1) + "\n")
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--into", type=Path, default=HERE)
    options = parser.parse_args()
    for run in options.runs:
        print(keep(run, options.into))


if __name__ == "__main__":
    main()

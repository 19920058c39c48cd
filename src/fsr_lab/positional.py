"""Verbs on folders, which need no config of their own: `fsr compare` and `fsr reproduce`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from fsr_lab.arguments import config_folder
from fsr_lab.printing import print_report, show
from fsr_lab.session import FAILED

COMPARE = "compare two records of the same samples: paired difference, interval, McNemar's test"
REPRODUCE = "make a run again from its own directory, and compare the outcome"


def compare_arguments(argv: Sequence[str]) -> None:
    """Parse `fsr compare RECORD RECORD [out=FOLDER]`, which needs no config."""
    from fsr_lab.report.page import compare_places

    places = [word for word in argv if not word.startswith(("-", "out="))]
    out = next((Path(word.removeprefix("out=")) for word in argv if word.startswith("out=")), None)
    if len(places) != 2 or any(word.startswith("-") for word in argv):
        print(f"fsr compare RECORD RECORD [out=FOLDER]: {COMPARE}")
        if argv and argv[0] not in ("-h", "--help"):
            raise ValueError(f"expected two records, or folders that hold them, got {places}")
        return
    show(*[comparison.rich() for comparison in compare_places(Path(places[0]), Path(places[1]), out)])
    if out is not None:
        print(f"comparison: {out}")


def reproduce_arguments(argv: Sequence[str], command: str) -> int:
    """Parse `fsr reproduce RUN [out=FOLDER]`, do it, and return the exit code: 1 of another outcome."""
    places = [word for word in argv if not word.startswith(("-", "out="))]
    out = next((Path(word.removeprefix("out=")) for word in argv if word.startswith("out=")), None)
    if len(places) != 1 or any(word.startswith("-") for word in argv):
        print(f"fsr reproduce RUN [out=FOLDER]: {REPRODUCE}")
        if argv and argv[0] not in ("-h", "--help"):
            raise ValueError(f"expected one run of fsr train, got {places}")
        return 0
    return reproduce(Path(places[0]), out, command)


def reproduce(run: Path, out: Path | None, command: str) -> int:
    """Train a run anew, tell what differs beforehand, and compare what came of it."""
    from fsr_lab.core.files import check_folder
    from fsr_lab.engine import reproducing
    from fsr_lab.engine import run as engine
    from fsr_lab.engine.quiet import hush_lightning
    from fsr_lab.report.reproduction import judge

    stored, paths = reproducing.stored_run(run), _paths()
    out = out or Path(paths.runs) / "reproduce" / run.resolve().name
    if out.resolve() == run.resolve():
        raise ValueError(f"{out} is the run itself; give another out=")
    check_folder("out", out)
    # a ledger of its own: in the common one it would find the first run's results
    folders = {"run": out, "data": Path(paths.data), "runs": Path(paths.runs), "ledgers": out / "ledgers"}
    cfg = reproducing.moved(stored, folders)
    hush_lightning()
    apart = reproducing.differences(run, engine.opened_data(cfg).data_hash)
    for line in apart:
        print(f"differs from {run.name}: {line}", file=sys.stderr, flush=True)
    reproducing.reproduce(cfg, out, command=command)
    found = judge(run, out, same_weights=reproducing.same_weights(run, out), differences=apart)
    if any(out.glob("records/*.json")):
        print_report(out)
    show(*[comparison.rich() for comparison in found.comparisons])
    print(found.sentence)
    print(f"reproduction: {found.write(out)}")
    return FAILED if found.kind == "different" else 0


def _paths() -> DictConfig:
    """Return where this machine keeps data and runs."""
    cfg = OmegaConf.create({"paths": OmegaConf.load(config_folder() / "paths" / "default.yaml")})
    return OmegaConf.create({name: cfg.paths[name] for name in ("data", "runs")})

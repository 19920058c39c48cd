"""Keep what finished runs measured: their records, analyses, curves and images, in the folder of the artefact.

    python experiments/keep.py table1 [--scale cpu] [--runs runs]

Only the runs that the artefact's manifest names are copied, and of these none that an artefact it shares with keeps.
Weights stay where they are. What a machine calls its folders is left out. Then: fsr report experiments/table1.
"""

import argparse
import json
import shutil
from pathlib import Path

from fsr_lab.core.files import write_text
from fsr_lab.core.provenance import without_places
from fsr_lab.report.manifest import MANIFEST, SCALES, Manifest

HERE = Path("experiments")
SMALL = ("records/**/*", "analyses/*", "metrics/version_*/metrics.csv", "samples.npz", "provenance*.json")


def keep(artefact: str, runs: Path, scales: list[str], into: Path = HERE) -> list[Path]:
    """Copy the runs of an artefact at some scales, and return where they lie.

    Raises:
        ValueError: there is no such artefact, or a run that it names is not finished.
    """
    manifest = Manifest.load(into / artefact / MANIFEST)
    shared = [Manifest.load(into / name / MANIFEST) for name in manifest.shares]
    kept = []
    for scale in scales:
        for root in (runs / name.format(scale=scale) for name in manifest.runs):
            for experiment in sorted(manifest.experiments):
                if any(experiment in other.experiments and other.scale_of(root.name) for other in shared):
                    continue
                for run in sorted((root / experiment).glob("*/")):
                    target = into / artefact / "records" / root.name / experiment / run.name
                    copy(run, target)
                    kept.append(target)
    return kept


def copy(run: Path, target: Path) -> None:
    """Copy the small files of a run anew.

    Raises:
        ValueError: the run is not finished.
    """
    status = run / "status.json"
    if status.is_file() and json.loads(status.read_text())["state"] != "finished":
        raise ValueError(f"{run} is not finished; the command that began it continues it")
    if target.exists():
        shutil.rmtree(target)
    for path in sorted({path for pattern in SMALL for path in run.glob(pattern) if path.is_file()}):
        place = target / path.relative_to(run)
        if path.suffix == ".json":
            content = without_places(json.loads(path.read_text()))
            is_sorted = not path.name.startswith("provenance")  # as each was written
            write_text(place, json.dumps(content, indent=1, sort_keys=is_sorted) + "\n")
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artefacts", nargs="+")
    parser.add_argument("--scale", choices=[*SCALES], action="append", help="cpu and paper unless given")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    options = parser.parse_args()
    for artefact in options.artefacts:
        for path in keep(artefact, options.runs, options.scale or ["cpu", "paper"]):
            print(path)


if __name__ == "__main__":
    main()

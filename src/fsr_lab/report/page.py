"""A folder's report: every record below it in one table, with where the numbers come from."""

from collections.abc import Sequence
from pathlib import Path

from fsr_lab.core.files import write_text
from fsr_lab.core.record import EvaluationRecord
from fsr_lab.report.table import Table, accuracy_table


def find_records(folder: Path) -> list[tuple[Path, EvaluationRecord]]:
    """Return every record below a folder with its path, in the order of the paths.

    Raises:
        ValueError: the folder does not exist or holds no record.
    """
    # within a run, last comes before best: it is the paper's column
    paths = sorted(
        folder.glob("**/records/**/*.json"), key=lambda path: (path.parent, not path.stem.startswith("last"), path.stem)
    )
    if not paths:
        raise ValueError(f"no evaluation record below {folder}; give a run, a sweep or an artefact folder")
    return [(path, EvaluationRecord.load(path)) for path in paths]


def write_report(folder: Path) -> tuple[Table, Path]:
    """Write report.md and table.csv of all records below a folder; the same records give the same bytes."""
    found = find_records(folder)
    table = accuracy_table([record for _, record in found])
    notes = _read(folder / "notes.md")
    pictures = [path.relative_to(folder) for path in sorted(folder.glob("**/*.png"))]
    text = "\n".join([
        f"# {folder.resolve().name}\n",
        *([notes] if notes else []),
        "## Robust accuracy\n",
        table.markdown(),
        "## Provenance\n",
        _provenance(folder, found),
        *(["## Pictures\n", *[f"![{path}]({path.as_posix()})\n" for path in pictures]] if pictures else []),
    ])  # fmt: skip
    path = folder / "report.md"
    write_text(folder / "table.csv", table.csv())
    write_text(path, text)
    return table, path


def _provenance(folder: Path, found: Sequence[tuple[Path, EvaluationRecord]]) -> str:
    lines = ["| model | record | revision | weights | data | crafted in | forwards | seed | machine |",
             "|---|---|---|---|---|---|--:|--:|---|"]  # fmt: skip
    for path, record in found:
        about = record.provenance
        revision = (about.revision[:10] or "installed") + (" (modified)" if about.dirty else "")
        machine = f"{about.host['processor']}, {about.host['threads']} threads, {about.host['accelerator']}"
        lines.append(
            f"| {record.name} | [{path.stem}]({path.relative_to(folder).as_posix()}) | {revision} | "
            f"{about.hashes.get('weights', '')} | {about.hashes.get('data', '')} | {record.precision} | "
            f"{int(record.forwards.sum())} | {about.seed} | {machine} |"
        )
    commands = list(dict.fromkeys(record.provenance.command for _, record in found))
    versions = dict(found[0][1].provenance.versions)
    lines += ["", "Commands:", "", *[f"    {command}" for command in commands], ""]
    lines.append("Versions: " + ", ".join(f"{name} {version}" for name, version in sorted(versions.items())) + ".\n")
    return "\n".join(lines)


def _read(path: Path) -> str:
    return path.read_text() if path.is_file() else ""

"""A folder's report: every record below it in one table, with where the numbers come from."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fsr_lab.core.files import check_folder, write_text
from fsr_lab.core.record import EvaluationRecord
from fsr_lab.report.breakers import first_breakers, longest_chain
from fsr_lab.report.folder_grids import folder_grids
from fsr_lab.report.gather import Gathered, Measured, gather
from fsr_lab.report.grid_text import grid_markdown, paired_markdown
from fsr_lab.report.paired import Comparison, compare
from fsr_lab.report.sections import linked, record_sections, told_apart
from fsr_lab.report.sweep import read_sweep
from fsr_lab.report.table import Table, accuracy_table
from fsr_lab.report.verdict import verdict


class Report(NamedTuple):
    """What was written of a folder, or of several.

    Attributes:
        table: of all records.
        path: of report.md.
        found: what there was.
        problems: a line of cause and cure for each file that could not be read.
    """

    table: Table
    path: Path
    found: Gathered
    problems: tuple[str, ...]


def find_records(folder: Path) -> list[Measured]:
    """Return every record below a folder, in the order of the paths.

    Raises:
        ValueError: the folder does not exist, holds no record, or one that cannot be read.
    """
    found = gather(folder)
    if found.problems:
        raise ValueError(found.problems[0])
    if not found.measured:
        raise ValueError(f"no evaluation record below {folder}; give a run, a sweep or an artefact folder")
    return list(found.measured)


def write_report(folder: Path, places: Sequence[Path] = ()) -> Report:
    """Write report.md, table.csv and table.json of all records below a folder; the same records give the same bytes.

    What cannot be read is named in the report, and leaves the rest.

    Args:
        folder: where to write, and whose notes.md and pictures are shown.
        places: where to look for records; none is the folder itself.

    Raises:
        ValueError: there is no record that can be read.
    """
    gathered = gather(*(places or (folder,)))
    if not gathered.measured:
        where = " and ".join(map(str, places or (folder,)))
        nothing = f"no evaluation record below {where}; give a run, a sweep or an artefact folder"
        raise ValueError(gathered.problems[0] if gathered.problems else nothing)
    found = told_apart(folder, [(each.path, each.record) for each in gathered.measured])
    table = accuracy_table([record for _, record in found])
    notes = _read(folder / "notes.md")
    grids = folder_grids(gathered.measured, folder)
    pictures = [path.relative_to(folder) for path in sorted(folder.glob("**/*.png"))]
    text = "\n".join([
        f"# {folder.resolve().name}\n",
        *([notes] if notes else []),
        *(["## Left out\n", *[f"- {problem}" for problem in gathered.problems], ""] if gathered.problems else []),
        *(["## Jobs\n", sweep.markdown()] if (sweep := read_sweep(folder)) else []),
        "## Robust accuracy\n",
        table.markdown(),
        *(["## Methods\n", *[grid_markdown(grid, folder) for grid in grids]] if _says_more(gathered.measured) else []),
        *(["## Paired tests\n", told] if (told := paired_markdown(grids)) else []),
        *[part for title, section in record_sections(folder, found) for part in (f"## {title}\n", section)],
        *(["## Pictures\n", *[f"![{path}]({path.as_posix()})\n" for path in pictures]] if pictures else []),
    ])  # fmt: skip
    path = folder / "report.md"
    write_text(folder / "table.csv", table.csv())
    write_text(folder / "table.json", json.dumps(_machine_readable(table, found, folder), indent=1) + "\n")
    write_text(path, text)
    return Report(table, path, gathered, gathered.problems)


def _says_more(measured: Sequence[Measured]) -> bool:
    """Tell whether there are several networks, so that means over seeds and tests say more than a row a record."""
    return len({(each.method, each.seed, each.run) for each in measured}) > 1


def compare_places(first: Path, second: Path, out: Path | None = None) -> list[Comparison]:
    """Compare two records, or the records of two folders that have the same name, and write what was found to `out`.

    Raises:
        ValueError: a place holds no record, several where the other has none of the same name, the records are not of
            the same samples, or `out` is no folder.
    """
    if out is not None:
        check_folder("out", out)
    left, right = _records_at(first), _records_at(second)
    if len(left) == len(right) == 1:
        pairs = [(left.popitem()[1], right.popitem()[1])]
    else:
        pairs = [(record, right[name]) for name, record in left.items() if name in right]
    if not pairs:
        raise ValueError(
            f"no records of one name in {first} ({sorted(left)}) and {second} ({sorted(right)}); give files"
        )
    found = [compare(*pair) for pair in pairs]
    if out is not None:
        write_text(out / "comparison.md", "\n".join(comparison.markdown() for comparison in found))
        for number, comparison in enumerate(found):
            stem = f"comparison{number or ''}"
            write_text(out / f"{stem}.csv", comparison.csv())
            write_text(out / f"{stem}.json", comparison.json())
    return found


def _records_at(place: Path) -> dict[str, EvaluationRecord]:
    if not place.exists():
        raise ValueError(f"there is no {place}; give a record's JSON file, or a folder that holds records")
    if place.is_file():
        return {place.stem: EvaluationRecord.load(place)}
    return {each.path.relative_to(place).as_posix(): each.record for each in find_records(place)}


def _first_breakers(record: EvaluationRecord) -> dict[str, Any] | None:
    """Return the chain, and of each sample's id the first attack of it that broke the sample, or None."""
    chain = longest_chain(record)
    if chain is None:
        return None
    by_id = zip(map(str, record.ids.tolist()), first_breakers(record, chain), strict=True)
    return {"chain": chain, "samples": dict(by_id)}


def _machine_readable(table: Table, found: Sequence[tuple[Path, EvaluationRecord]], folder: Path) -> dict[str, Any]:
    return {
        "values": table.plain(),
        "records": [
            {
                "model": record.name, "record": linked(path, folder), "threat": str(record.threat),
                "samples": len(record), "chunk": record.chunk, "precision": record.precision,
                "forwards": dict(zip(record.attacks, record.forwards.tolist(), strict=True)),
                "backwards": dict(zip(record.attacks, record.backwards.tolist(), strict=True)),
                "chains": dict(record.chains), "limits": dict(record.limits), "settings": dict(record.settings),
                "first_broken_by": _first_breakers(record),
                "findings": [finding._asdict() for finding in record.findings],
                "verdict": _judged(record),
                "provenance": record.provenance.as_dict(),
            }
            for path, record in found
        ],
        "note": table.note,
    }  # fmt: skip


def _judged(record: EvaluationRecord) -> dict[str, Any]:
    kind, sentence, evidence = verdict(record)
    return {"kind": kind, "sentence": sentence, "evidence": [found._asdict() for found in evidence]}


def _read(path: Path) -> str:
    return path.read_text() if path.is_file() else ""

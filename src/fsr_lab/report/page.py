"""A folder's report: every record below it in one table, with where the numbers come from."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fsr_lab.core.explain import explanation, explanations
from fsr_lab.core.files import check_folder, write_text
from fsr_lab.core.record import CLEAN, EvaluationRecord, Finding
from fsr_lab.report.breakers import breakers, first_breakers, longest_chain
from fsr_lab.report.columns import named
from fsr_lab.report.paired import Comparison, compare
from fsr_lab.report.sweep import read_sweep
from fsr_lab.report.table import Table, accuracy_table
from fsr_lab.report.verdict import rules_table, verdict


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
    """Write report.md, table.csv and table.json of all records below a folder; the same records give the same bytes."""
    found = _told_apart(folder, find_records(folder))
    records = [record for _, record in found]
    table = accuracy_table(records)
    notes = _read(folder / "notes.md")
    pictures = [path.relative_to(folder) for path in sorted(folder.glob("**/*.png"))]
    text = "\n".join([
        f"# {folder.resolve().name}\n",
        *([notes] if notes else []),
        *(["## Jobs\n", sweep.markdown()] if (sweep := read_sweep(folder)) else []),
        "## Robust accuracy\n",
        table.markdown(),
        "## Verdict\n",
        _verdicts(records),
        *(["## What broke each sample\n", broken] if (broken := breakers(records)) else []),
        "## Findings\n",
        _findings(records),
        "## Cost\n",
        _costs(records),
        "## Provenance\n",
        _provenance(folder, found),
        *(["## Pictures\n", *[f"![{path}]({path.as_posix()})\n" for path in pictures]] if pictures else []),
    ])  # fmt: skip
    path = folder / "report.md"
    write_text(folder / "table.csv", table.csv())
    write_text(folder / "table.json", json.dumps(_machine_readable(table, found, folder), indent=1) + "\n")
    write_text(path, text)
    return table, path


def _told_apart(folder: Path, found: Sequence[tuple[Path, EvaluationRecord]]) -> list[tuple[Path, EvaluationRecord]]:
    """Return the records, with its place behind the name where a name and a seed are those of several."""
    count = Counter((record.name, record.provenance.seed) for _, record in found)
    return [
        (path, replace(record, name=f"{record.name} [{path.relative_to(folder).with_suffix('').as_posix()}]"))
        if count[record.name, record.provenance.seed] > 1 else (path, record)
        for path, record in found
    ]  # fmt: skip


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
    return {path.relative_to(place).as_posix(): record for path, record in find_records(place)}


def _verdicts(records: Sequence[EvaluationRecord]) -> str:
    """Return a line for each record, what the words mean, and the rules."""
    lines = [f"- {record.name}: {verdict(record).sentence}" for record in records]
    return "\n".join([*lines, "", explanation("verdict"), "", rules_table()])


def _findings(records: Sequence[EvaluationRecord]) -> str:
    """Return what each record's checks found and what was not run, and an explanation of all that is no pass."""
    lines, told = [], set()
    for record in records:
        skipped = [finding for finding in record.findings if finding.verdict == "skip"]
        checks = [finding for finding in record.findings if finding.verdict != "skip"]
        doubts = [finding for finding in checks if finding.verdict != "pass"]
        if not checks:
            lines.append(f"{record.name}: no checks were made.\n")
        elif not doubts:
            lines.append(f"{record.name}: all {len(checks)} checks passed.\n")
        else:
            lines += [f"{record.name}, {len(doubts)} of {len(checks)} checks:\n",
                      "| check | verdict | value | what it means | touches |", "|---|---|--:|---|---|"]  # fmt: skip
            lines += [_finding(finding) for finding in doubts]
            lines.append("")
        if skipped:
            lines += ["Not run, as they do not concern the network:\n", *[f"- {each.text}" for each in skipped], ""]
        told |= {finding.check for finding in (*doubts, *skipped)}
    lines += [f"### {check}\n\n{text}\n" for check in sorted(told) if (text := explanations().get(check))]
    return "\n".join(lines)


def _finding(finding: Finding) -> str:
    check = f"[{finding.check}](#{finding.check})" if finding.check in explanations() else finding.check
    text, touched = finding.text.replace("|", "\\|"), ", ".join(finding.attacks) or "all numbers"
    return f"| {check} | {finding.verdict.upper()} | {finding.value:.4g} | {text} | {touched} |"


def _costs(records: Sequence[EvaluationRecord]) -> str:
    """Return passes per sample of the split, a line a record; a family's are added up."""
    passes = [_passes(record) for record in records]
    attacks = [name for name in dict.fromkeys(name for row in passes for name in row) if name != CLEAN]
    lines = [f"| model | {' | '.join(named(name) for name in attacks)} | crafted in |",
             "|---|" + "--:|" * len(attacks) + "---|"]  # fmt: skip
    for record, row in zip(records, passes, strict=True):
        cells = [" + ".join(f"{each / max(len(record), 1):.1f}" for each in row.get(name, ())) for name in attacks]
        lines.append(f"| {record.name} | {' | '.join(cells)} | {record.precision} |")
    note = (
        "Passes per sample: forwards + gradients. Attacks that share a path are run once, and counted with the "
        "longest. Outcomes are judged in float32.\n"
    )
    return "\n".join([*lines, "", note])


def _passes(record: EvaluationRecord) -> dict[str, tuple[int, int]]:
    """Return the forwards and gradients of each attack, and of each family as a whole."""
    found: dict[str, tuple[int, int]] = {}
    for attack, forwards, backwards in zip(record.attacks, record.forwards, record.backwards, strict=True):
        family = attack.partition("/")[0]
        name = family if family in record.chains else attack
        before = found.get(name, (0, 0))
        found[name] = before[0] + int(forwards), before[1] + int(backwards)
    return found


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
                "model": record.name, "record": path.relative_to(folder).as_posix(), "threat": str(record.threat),
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


def _provenance(folder: Path, found: Sequence[tuple[Path, EvaluationRecord]]) -> str:
    lines = ["| model | record | revision | weights | data | crafted in | forwards | seed | put together on |",
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
    note = (
        "A record names the revision, the versions and the machine of the process that put it together; what this "
        "found in a ledger, such as that of shards, may have been attacked elsewhere.\n"
    )
    lines += ["", note, "Commands:", "", *[f"    {command}" for command in commands], ""]
    return "\n".join([*lines, *_versions(folder, found)])


def _versions(folder: Path, found: Sequence[tuple[Path, EvaluationRecord]]) -> list[str]:
    """Return the packages' versions, once where all records have the same, else with the records that have each."""
    holders: dict[str, list[str]] = {}
    for path, record in found:
        versions = sorted(record.provenance.versions.items())
        text = ", ".join(f"{name} {version}" for name, version in versions)
        holders.setdefault(text, []).append(path.relative_to(folder).with_suffix("").as_posix())
    if len(holders) == 1:
        return [f"Versions: {text}.\n" for text in holders]
    return [f"Versions of {', '.join(records)}: {text}.\n" for text, records in holders.items()]


def _read(path: Path) -> str:
    return path.read_text() if path.is_file() else ""

"""The sections of a report that tell of records, as Markdown: verdicts, findings, costs, provenance."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from os.path import relpath
from pathlib import Path

from fsr_lab.core.explain import explanation, explanations
from fsr_lab.core.record import CLEAN, EvaluationRecord, Finding
from fsr_lab.report.breakers import breakers
from fsr_lab.report.columns import named
from fsr_lab.report.verdict import rules_table, verdict


def record_sections(folder: Path, found: Sequence[tuple[Path, EvaluationRecord]]) -> list[tuple[str, str]]:
    """Return (title, Markdown) of what there is to say of records beyond their numbers; none if there are none."""
    records = [record for _, record in found]
    if not records:
        return []
    broken = breakers(records)
    return [
        ("Verdict", verdicts(records)), *([("What broke each sample", broken)] if broken else []),
        ("Findings", findings(records)), ("Cost", costs(records)), ("Provenance", provenance(folder, found)),
    ]  # fmt: skip


def verdicts(records: Sequence[EvaluationRecord]) -> str:
    """Return a line for each record, what the words mean, and the rules."""
    lines = [f"- {record.name}: {verdict(record).sentence}" for record in records]
    return "\n".join([*lines, "", explanation("verdict"), "", rules_table()])


def findings(records: Sequence[EvaluationRecord]) -> str:
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


def costs(records: Sequence[EvaluationRecord]) -> str:
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


def provenance(folder: Path, found: Sequence[tuple[Path, EvaluationRecord]]) -> str:
    """Return where each record comes from: revision, weights, data, machine, commands, versions."""
    lines = ["| model | record | revision | weights | data | crafted in | forwards | seed | put together on |",
             "|---|---|---|---|---|---|--:|--:|---|"]  # fmt: skip
    for path, record in found:
        about = record.provenance
        revision = (about.revision[:10] or "installed") + (" (modified)" if about.dirty else "")
        machine = f"{about.host['processor']}, {about.host['threads']} threads, {about.host['accelerator']}"
        lines.append(
            f"| {record.name} | [{path.stem}]({linked(path, folder)}) | {revision} | "
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
        holders.setdefault(text, []).append(linked(path.with_suffix(""), folder))
    if len(holders) == 1:
        return [f"Versions: {text}.\n" for text in holders]
    return [f"Versions of {', '.join(records)}: {text}.\n" for text, records in holders.items()]


def linked(path: Path, folder: Path) -> str:
    """Return a path as a page in a folder links to it."""
    return Path(relpath(path, folder)).as_posix()


def told_apart(folder: Path, found: Sequence[tuple[Path, EvaluationRecord]]) -> list[tuple[Path, EvaluationRecord]]:
    """Return the records, those of one name with their seeds behind it, or their places where seeds are not enough."""
    names = Counter(record.name for _, record in found)
    seeds = Counter((record.name, record.provenance.seed) for _, record in found)
    return [(path, replace(record, name=_told(folder, path, record, names, seeds))) for path, record in found]


def _told(
    folder: Path, path: Path, record: EvaluationRecord, names: Counter[str], seeds: Counter[tuple[str, int]]
) -> str:
    seed = record.provenance.seed
    if seeds[record.name, seed] > 1:
        return f"{record.name} [{linked(path.with_suffix(''), folder)}]"
    return f"{record.name}, seed {seed}" if names[record.name] > 1 else record.name

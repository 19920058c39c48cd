"""The doctor's findings for a terminal: a table, the paragraphs of whatever is not well, and the verdict."""

from collections.abc import Mapping, Sequence

from rich.console import Group
from rich.markdown import Markdown
from rich.table import Table as RichTable
from rich.text import Text

from fsr_lab.core.explain import explanation
from fsr_lab.core.record import EvaluationRecord, Finding
from fsr_lab.report.verdict import rules_table, verdict, verdict_of_checks

STYLES = {"pass": "green", "warn": "yellow", "fail": "bold red", "skip": "dim"}


def told(check: str) -> str:
    """Return the paragraph of one check; the verdict's with its rules.

    Raises:
        ValueError: there is no such check.
    """
    return explanation(check) + (f"\n\n{rules_table().rstrip()}" if check == "verdict" else "")


def diagnosis(
    findings: Mapping[str, Sequence[Finding]],
    left_out: Sequence[str] = (),
    records: Mapping[str, EvaluationRecord] | None = None,
) -> Group:
    """Return a table of findings, the paragraph of each check that is no pass, and the verdicts.

    Args:
        findings: by what was looked at: the network, each record.
        left_out: checks of the network that were not run.
        records: {what was looked at: it} where that is a record; None leaves verdicts out.
    """
    table = RichTable(caption="what each check means: fsr doctor explain=CHECK", caption_justify="left")
    for heading in ("of", "check", "verdict", "number", "finding"):
        table.add_column(heading, justify="right" if heading == "number" else "left", overflow="fold")
    for subject, found in findings.items():
        for index, finding in enumerate(found):
            grade = Text(finding.verdict.upper(), STYLES[finding.verdict])
            table.add_row(subject if index == 0 else "", finding.check, grade, f"{finding.value:.4g}", _told(finding))
        table.add_section()
    parts: list[RichTable | Text | Markdown] = [table]
    if left_out:
        parts.append(Text(f"not run, as they need what did not pass: {', '.join(left_out)}"))
    raised = [finding.check for found in findings.values() for finding in found if finding.verdict != "pass"]
    for check in dict.fromkeys(raised):
        parts += [Text(f"\n{check}", "bold"), Markdown(explanation(check))]
    if records is not None:
        parts.append(Text("\nverdict", "bold"))
        for subject, found in findings.items():
            record = records.get(subject)
            judged = verdict_of_checks(found) if record is None else verdict(record)
            parts.append(Text(f"{subject}: {judged.sentence}"))
    return Group(*parts)


def _told(finding: Finding) -> Text:
    touched = f" (touches {', '.join(finding.attacks)})" if finding.attacks else ""
    return Text(finding.text + touched)

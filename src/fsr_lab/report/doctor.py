"""The doctor's findings for a terminal: a table, and the paragraphs of whatever is not well."""

from collections.abc import Mapping, Sequence

from rich.console import Group
from rich.markdown import Markdown
from rich.table import Table as RichTable
from rich.text import Text

from fsr_lab.core.explain import explanation
from fsr_lab.core.record import Finding

STYLES = {"pass": "green", "warn": "yellow", "fail": "bold red", "skip": "dim"}


def diagnosis(findings: Mapping[str, Sequence[Finding]], left_out: Sequence[str] = ()) -> Group:
    """Return a table of findings, then the paragraph of each check that warns, fails or left something out.

    Args:
        findings: by what was looked at: the network, each record.
        left_out: checks of the network that were not run.
    """
    table = RichTable(caption="what each check means: fsr doctor explain=CHECK", caption_justify="left")
    for heading in ("of", "check", "verdict", "number", "finding"):
        table.add_column(heading, justify="right" if heading == "number" else "left", overflow="fold")
    for subject, found in findings.items():
        for index, finding in enumerate(found):
            verdict = Text(finding.verdict.upper(), STYLES[finding.verdict])
            table.add_row(subject if index == 0 else "", finding.check, verdict, f"{finding.value:.4g}", _told(finding))
        table.add_section()
    parts: list[RichTable | Text | Markdown] = [table]
    if left_out:
        parts.append(Text(f"not run, as they need what did not pass: {', '.join(left_out)}"))
    raised = [finding.check for found in findings.values() for finding in found if finding.verdict != "pass"]
    for check in dict.fromkeys(raised):
        parts += [Text(f"\n{check}", "bold"), Markdown(explanation(check))]
    return Group(*parts)


def _told(finding: Finding) -> Text:
    touched = f" (touches {', '.join(finding.attacks)})" if finding.attacks else ""
    return Text(finding.text + touched)

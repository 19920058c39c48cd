"""Puts what `fsr doctor explain=CHECK` prints into the doctor's page, check by check."""

from typing import Any

from fsr_lab.core.explain import explanations
from fsr_lab.report.doctor import told

PLACE = "<!-- every check -->"


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Return a page's Markdown; mkdocs calls this for every page."""
    if page.file.src_uri != "doctor.md":
        return markdown
    if PLACE not in markdown:
        raise ValueError(f"docs/doctor.md has no line {PLACE}; put it where the checks go")
    return markdown.replace(PLACE, "\n\n".join(f"## {check}\n\n{told(check)}" for check in explanations()))

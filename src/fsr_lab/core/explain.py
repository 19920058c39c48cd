"""What each check of an evaluation measures, why it matters and what to do: the paragraphs of `doctor.md`."""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from fsr_lab.core.suggest import unknown


@cache
def explanations() -> Mapping[str, str]:
    """Return {check: its paragraph, as Markdown}, in the order of a diagnosis."""
    text = files("fsr_lab.core").joinpath("doctor.md").read_text(encoding="utf-8")
    parts = [part.partition("\n") for part in ("\n" + text).split("\n## ")[1:]]
    return {check.strip(): paragraph.strip() for check, _, paragraph in parts}


def explanation(check: str) -> str:
    """Return the paragraph of one check.

    Raises:
        ValueError: there is no such check.
    """
    if check not in explanations():
        raise ValueError(unknown("check", check, explanations()))
    return explanations()[check]

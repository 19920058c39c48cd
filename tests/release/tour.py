"""A page of the documentation as a list of things to run."""

import re
from pathlib import Path
from typing import NamedTuple


class Step(NamedTuple):
    """A command line, or a script of Python."""

    kind: str
    text: str


def steps(page: Path) -> list[Step]:
    """Return what a page's fenced blocks run, in order: every `$ ` line of console, and each block of Python."""
    found = []
    for kind, text in re.findall(r"^```(console|python)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        if kind == "python":
            found.append(Step(kind, text))
        else:
            found += [Step(kind, line.removeprefix("$ ")) for line in text.splitlines() if line.startswith("$ ")]
    return found

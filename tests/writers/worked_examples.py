"""The files that a page of the documentation shows, in a folder of their own, as a reader would have them."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(DOCS.glob("add_*.md"))


def shown(group: str) -> list[str]:
    """Return the options of a group that the pages show."""
    return [name for page in PAGES for name in re.findall(rf'title="conf/{group}/(\S+)\.yaml"', page.read_text())]


def write_examples(pages: list[Path], folder: Path) -> Path:
    """Write every titled block of the pages below `folder` under its title, and return the folder."""
    for page in pages:
        blocks = re.findall(r'^```\w+ title="(\S+)"\n(.*?)^```', page.read_text(), re.DOTALL | re.MULTILINE)
        assert blocks, f"{page.name} shows no file"
        for title, text in blocks:
            path = folder / title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return folder

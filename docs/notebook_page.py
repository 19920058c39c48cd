"""Puts a notebook, with the outputs that it is stored with, into the page of the same name."""

import json
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
PLACE = "<!-- {} -->"


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Return a page's Markdown; mkdocs calls this for every page."""
    path = (DOCS / page.file.src_uri).with_suffix(".ipynb")
    if not path.is_file():
        return markdown
    place = PLACE.format(path.name)
    if place not in markdown:
        raise ValueError(f"docs/{page.file.src_uri} has no line {place}; put it where the notebook goes")
    return markdown.replace(place, "\n\n".join(map(shown, json.loads(path.read_text())["cells"])))


def shown(cell: dict[str, Any]) -> str:
    """Return a cell and its outputs as Markdown."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return source
    return "\n\n".join([fenced(source, "python"), *(output_of(each, cell) for each in cell["outputs"])])


def output_of(output: dict[str, Any], cell: dict[str, Any]) -> str:
    """Return one output: a figure, whose alternative text its cell holds, or what was printed."""
    if output["output_type"] == "stream":
        return fenced("".join(output["text"]), "text")
    image = "".join(output["data"]["image/png"].split())
    return f"![{cell['metadata']['alt']}](data:image/png;base64,{image})"


def fenced(text: str, language: str) -> str:
    """Return a block of code."""
    return f"```{language}\n{text.rstrip()}\n```"

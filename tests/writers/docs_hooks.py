"""The hooks by which mkdocs fills pages, called as mkdocs calls them."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

from scripts import loaded

DOCS = Path(__file__).parents[2] / "docs"


def hook(name: str) -> ModuleType:
    """Return docs/NAME.py, loaded."""
    return loaded(DOCS / f"{name}.py")


def filled(called: Callable[..., str], page: str, text: str | None = None) -> str:
    """Return what a hook makes of a page, or of a text that stands in its place."""
    text = (DOCS / page).read_text() if text is None else text
    return called(text, page=SimpleNamespace(file=SimpleNamespace(src_uri=page)))

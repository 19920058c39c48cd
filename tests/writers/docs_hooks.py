"""The hooks by which mkdocs fills pages, called as mkdocs calls them."""

from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace

DOCS = Path(__file__).parents[2] / "docs"


def hook(name: str) -> ModuleType:
    """Return docs/NAME.py, loaded."""
    spec = spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def filled(called: Callable[..., str], page: str, text: str | None = None) -> str:
    """Return what a hook makes of a page, or of a text that stands in its place."""
    text = (DOCS / page).read_text() if text is None else text
    return called(text, page=SimpleNamespace(file=SimpleNamespace(src_uri=page)))

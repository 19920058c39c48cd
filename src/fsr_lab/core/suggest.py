"""Close names for error messages: whoever mistypes a name is told its neighbours."""

from collections.abc import Iterable
from difflib import get_close_matches


def close_names(name: str, known: Iterable[str], *, count: int = 5) -> list[str]:
    """Return up to `count` of the known names that resemble `name`, nearest first."""
    return get_close_matches(name, list(known), n=count, cutoff=0.5)


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Return the one-line message for a name that does not exist: its neighbours, or all names if none is near."""
    names = sorted(known)
    near = close_names(name, names)
    hint = f"close names: {near}" if near else f"there are: {names}"
    return f"no {kind} named {name!r}; {hint}"

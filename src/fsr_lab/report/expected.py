"""The paper's numbers, which are data: each with its table, row and column."""

import json
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import NamedTuple, Self

EXPECTED = "expected.json"


class Printed(NamedTuple):
    """One number as the paper prints it, and where."""

    value: Decimal
    where: str


class Expected(NamedTuple):
    """What the paper prints in an artefact's tables.

    Attributes:
        source: the paper, or why no number of it is known.
        rows: {row: {column: number}}.
    """

    source: str
    rows: Mapping[str, Mapping[str, Printed]]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read an expected.json.

        Raises:
            ValueError: it is not there, or damaged.
        """
        if not path.is_file():
            raise ValueError(f"no {path}, the paper's numbers that the artefact is held against; restore it from git")
        try:
            content = json.loads(path.read_text())
            rows = {
                name: {column: _printed(text, row, column) for column, text in row["values"].items()}
                for name, row in content["rows"].items()
            }
            return cls(source=str(content["source"]), rows=rows)
        except (OSError, AttributeError, KeyError, TypeError, ValueError, InvalidOperation) as err:
            raise ValueError(f"{path} is not a readable table of the paper's numbers ({err!r}); see git") from err

    def number(self, row: str | None, column: str | None) -> Printed | None:
        """Return what the paper prints in a row and a column, or None where it prints nothing.

        Raises:
            ValueError: there is no such row.
        """
        if row is None or column is None:
            return None
        if row not in self.rows:
            raise ValueError(f"expected.json has no row {row!r}, which the manifest names; it has {sorted(self.rows)}")
        return self.rows[row].get(column)


def _printed(text: str, row: Mapping[str, str], column: str) -> Printed:
    if not isinstance(text, str):  # a number would lose the zeros that tell how far the paper rounded
        raise ValueError(f'expected a number as it is printed, such as "46.10", got {text!r}')
    table = row["table"]
    place = f"Section {table.removeprefix('text')}" if table.startswith("text") else f"Table {table}"
    return Printed(Decimal(text), f"{place}, {row['row']}, {column}")

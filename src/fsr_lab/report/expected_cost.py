"""The paper's costs, which are data, beside ours."""

import json
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple, Self

from fsr_lab.core.cost import DAMAGES, CostRow

SCALES = {"parameters": 10**6, "flops": 10**9}
"""What is compared, and the unit that the paper prints it in."""


class Figure(NamedTuple):
    """One number of the paper beside ours, both in the paper's unit and to its decimals.

    Attributes:
        ours: counted, rounded.
        paper: as printed.
        reason: why the two differ, as far as that is known.
    """

    ours: Decimal
    paper: Decimal
    reason: str

    @property
    def difference(self) -> Decimal:
        """Ours less the paper's."""
        return self.ours - self.paper


class Printed(NamedTuple):
    """What the paper prints of one network: {"parameters" or "flops": text}, and reasons for what differs."""

    figures: Mapping[str, str]
    reasons: Mapping[str, str]


class ExpectedCosts(NamedTuple):
    """A table of the paper.

    Attributes:
        source: where it is printed.
        image_shape: (C, H, W) of the images that it is for.
        num_classes: K likewise.
        rows: {(model, defense): what is printed}.
    """

    source: str
    image_shape: tuple[int, ...]
    num_classes: int
    rows: Mapping[tuple[str, str], Printed]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read an expected.json.

        Raises:
            ValueError: the file is damaged.
        """
        try:
            content = json.loads(path.read_text())
            return cls(
                source=str(content["source"]),
                image_shape=tuple(content["image_shape"]),
                num_classes=int(content["num_classes"]),
                rows={(row["model"], row["defense"]): _printed(row) for row in content["rows"].values()},
            )
        except DAMAGES as err:
            raise ValueError(f"{path} is not a readable table of expected costs: {err}") from err

    def compare(self, row: CostRow) -> dict[str, Figure]:
        """Return the paper's figures beside a row's: none for other images, classes or settings than the paper's."""
        ours = (row.image_shape, row.num_classes, row.settings)
        printed = self.rows.get((row.model, row.defense))
        if row.cost is None or printed is None or ours != (self.image_shape, self.num_classes, ()):
            return {}
        return {
            name: _figure(getattr(row.cost, name), SCALES[name], text, printed.reasons.get(name, ""))
            for name, text in printed.figures.items()
        }


def _printed(row: Mapping[str, Any]) -> Printed:
    figures = {name: row[name] for name in SCALES if name in row}
    for text in figures.values():
        # text, because a number would lose the zeros that tell how far the paper rounded
        if not isinstance(text, str) or not text.replace(".", "", 1).isdecimal():
            raise ValueError(f'expected a figure as it is printed, such as "0.6299", got {text!r}')
    return Printed(figures, dict(row.get("reasons", {})))


def _figure(count: int, scale: int, text: str, reason: str) -> Figure:
    paper = Decimal(text)
    return Figure((Decimal(count) / scale).quantize(paper), paper, reason)

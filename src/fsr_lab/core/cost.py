"""What networks cost, as data: counted by `evaluation.cost`, laid out by `report.cost`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from fsr_lab.core.files import write_text
from fsr_lab.core.provenance import Provenance

DAMAGES = (OSError, AttributeError, KeyError, TypeError, ValueError)
"""What reading a damaged file may raise."""


class Cost(NamedTuple):
    """What one image costs in one network.

    Attributes:
        parameters: of the whole network.
        defense_parameters: of the defences in it.
        flops: in the FSR paper's convention, auxiliary heads run.
        macs: multiply-accumulates of convolutions, linear layers and matrix products, as deployed.
        macs_with_aux: likewise with auxiliary heads, as in training.
    """

    parameters: int
    defense_parameters: int
    flops: int
    macs: int
    macs_with_aux: int


@dataclass(frozen=True, kw_only=True)
class CostRow:
    """A backbone under a defence.

    Attributes:
        model: option of the backbone.
        defense: option of the defence.
        settings: what was overridden within the two, such as "model.width=16".
        image_shape: (C, H, W).
        num_classes: K.
        cost: None where the combination cannot be built.
        reason: why it cannot, in one line.
    """

    model: str
    defense: str
    settings: tuple[str, ...]
    image_shape: tuple[int, ...]
    num_classes: int
    cost: Cost | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class CostRecord:
    """The rows of one call of `fsr cost`, and where they come from."""

    rows: tuple[CostRow, ...]
    provenance: Provenance

    def save(self, path: Path) -> None:
        """Write one JSON file."""
        rows = [vars(row) | {"cost": row.cost and row.cost._asdict()} for row in self.rows]
        write_text(path, json.dumps({"rows": rows, "provenance": self.provenance.as_dict()}, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            ValueError: the file is damaged.
        """
        try:
            content = json.loads(path.read_text())
            return cls(rows=tuple(map(_row, content["rows"])), provenance=Provenance(**content["provenance"]))
        except DAMAGES as err:
            raise ValueError(f"{path} is not a readable cost record ({err}); run fsr cost again") from err


def _row(content: dict[str, Any]) -> CostRow:
    tuples = {name: tuple(content[name]) for name in ("settings", "image_shape")}
    return CostRow(**content | tuples | {"cost": Cost(**content["cost"]) if content["cost"] else None})

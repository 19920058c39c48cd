"""What an analysis measured on one network, as data: made by `fsr_lab.analysis`, laid out by `fsr_lab.report`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fsr_lab.core.files import write_atomically, write_text
from fsr_lab.core.provenance import Provenance
from fsr_lab.core.record import DAMAGES

FOLDER = "analyses"
"""Where a run or an artefact keeps its analyses."""


@dataclass(frozen=True, eq=False, kw_only=True)
class AnalysisRecord:
    """Arrays and what they mean.

    Attributes:
        kind: the option of conf/analysis that made it, by which a report knows how to show it.
        name: of the network.
        settings: what it was asked, as plain JSON values.
        arrays: by name; shapes and units stand in the docstring of the analysis.
        provenance: where they come from.
    """

    kind: str
    name: str
    settings: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]
    provenance: Provenance

    def save(self, folder: Path, stem: str) -> Path:
        """Write `<stem>.npz` (arrays) and then `<stem>.json` (the rest), whole or not at all; return the latter."""
        arrays: dict[str, Any] = dict(self.arrays)
        write_atomically(folder / f"{stem}.npz", lambda stream: np.savez_compressed(stream, **arrays))
        header = {
            "kind": self.kind, "name": self.name, "settings": dict(self.settings),
            "provenance": self.provenance.as_dict(),
        }  # fmt: skip
        path = folder / f"{stem}.json"
        write_text(path, json.dumps(header, indent=1, sort_keys=True) + "\n")
        return path

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read an analysis back from its JSON file.

        Raises:
            ValueError: a file is missing, damaged or no analysis.
        """
        try:
            header = json.loads(path.read_text())
            with path.with_suffix(".npz").open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
                arrays = dict(stored)
            return cls(
                kind=header["kind"], name=header["name"], settings=header["settings"], arrays=arrays,
                provenance=Provenance(**header["provenance"]),
            )  # fmt: skip
        except DAMAGES as err:
            raise ValueError(f"{path} is not a whole analysis ({err}); analyse again") from err

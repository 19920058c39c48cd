"""A ledger: what an evaluation has found so far, cell by cell, safe at any kill and shared by its shards."""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from fsr_lab.core.files import write_atomically, write_text
from fsr_lab.core.record import DAMAGES
from fsr_lab.evaluation.cell import Cell

HEADER = "ledger.json"
_ARRAYS = ("outcome", "margin", "norm", "forwards", "backwards")


class Ledger:
    """The cells of one evaluation, kept in a folder or, without one, in memory.

    A cell is a file that appears whole or not at all, `<attack>/<chunk>.npz`, so that a kill loses at most the cell
    in work, and processes with different chunks may write at the same time. Its column carries the attack's settings:
    the same name with other settings is another column.

    Args:
        folder: where the cells lie; None keeps them in memory.
        identity: what evaluation this is, as plain values; a folder of another one is refused.

    Raises:
        ValueError: the folder holds the ledger of another evaluation, or something else.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path | None, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self._cells: dict[tuple[str, int], Cell] = {}
        if folder is None:
            return
        path = folder / HEADER
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # another process may be writing the header now, or have been killed while it did
            others = any(not file.name.startswith(f".{HEADER}.") for file in folder.iterdir())
            if others and not path.is_file():
                raise ValueError(
                    f"{folder} is not a ledger: it holds other files and no {HEADER}; give an empty folder"
                )
            if not path.is_file():
                write_text(path, json.dumps(identity, indent=1, sort_keys=True) + "\n")
            header = path.read_text()
        except OSError as err:
            raise OSError(err.errno, f"cannot keep a ledger in {folder} ({err.strerror}); give ledger=FOLDER") from err
        _refuse_other(folder, _parsed(header, path), identity)

    def find(self, column: str, index: int, *, with_images: bool = False) -> Cell | None:
        """Return a cell, or None where it is still to be run; a damaged one is, and is said to be."""
        cell = self._cells.get((column, index))
        if self.folder is not None and (cell is None or with_images):
            cell = self._read(self._path(column, index), with_images=with_images)
            if cell is not None:
                self._cells[column, index] = replace(cell, images=None)
        return None if cell is None or (with_images and cell.images is None) else cell

    def cell(self, column: str, index: int) -> Cell:
        """Return a cell that must be there.

        Raises:
            RuntimeError: somebody removed it while the evaluation ran.
        """
        cell = self.find(column, index)
        if cell is None:
            raise RuntimeError(f"cell {index} of {column!r} left the ledger {self.folder} while it was in use")
        return cell

    def put(self, column: str, index: int, cell: Cell) -> None:
        """Keep a cell.

        Raises:
            OSError: the disk is full; every cell kept before still is.
        """
        if self.folder is not None:
            arrays: dict[str, Any] = {name: getattr(cell, name) for name in _ARRAYS}
            if cell.images is not None:
                arrays["images"] = cell.images
            write_atomically(self._path(column, index), lambda stream: np.savez(stream, **arrays))
            cell = replace(cell, images=None)  # what lies on disk need not fill the memory
        self._cells[column, index] = cell

    def images(self, column: str) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield (chunk index, adversarial images) of a column as far as they were kept, in order."""
        if self.folder is None:
            found = sorted(index for name, index in self._cells if name == column)
        else:
            found = sorted(int(path.stem) for path in self._path(column, 0).parent.glob("[0-9]*.npz"))
        for index in found:
            cell = self.find(column, index, with_images=True)
            if cell is not None and cell.images is not None:
                yield index, cell.images

    def _path(self, column: str, index: int) -> Path:
        assert self.folder is not None
        return self.folder / quote(column, safe=" ,=+()") / f"{index:05d}.npz"

    @staticmethod
    def _read(path: Path, *, with_images: bool) -> Cell | None:
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
                values = {name: stored[name] for name in stored.files if with_images or name != "images"}
            for name in ("forwards", "backwards"):
                values[name] = int(values[name])
            return Cell(**values)
        except FileNotFoundError:
            return None
        except DAMAGES as err:
            print(f"{path} is damaged ({err}); this cell is evaluated again", file=sys.stderr, flush=True)
            return None


def _parsed(text: str, path: Path) -> Mapping[str, Any]:
    try:
        header = json.loads(text)
        if not isinstance(header, Mapping):
            raise TypeError(f"a {type(header).__name__}")
    except (ValueError, TypeError) as err:
        raise ValueError(f"{path} is damaged ({err}); give another ledger=, or put it back") from err
    return header


def _refuse_other(folder: Path, stored: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    differing = [
        f"{key}: {stored.get(key)} there, {value} here" for key, value in identity.items() if stored.get(key) != value
    ]
    if differing:
        raise ValueError(
            f"{folder} is the ledger of another evaluation ({'; '.join(differing)}); give this one another ledger="
        )

"""Reads what W&B wrote offline: a LevelDB log of protobuf records."""

import json
import struct
from pathlib import Path
from typing import Any

HEADER, BLOCK, FULL, LAST = 7, 32768, 1, 4


def records(folder: Path) -> list[Any]:
    """Return every record of the one journal in a run's offline folder."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("*.wandb")
    blob, place, parts, found = path.read_bytes(), HEADER, b"", []
    assert blob[:4] == b":W&B"
    while place + HEADER <= len(blob):
        left = BLOCK - place % BLOCK
        if left < HEADER:
            place += left  # a record's header is never split
            continue
        _, size, kind = struct.unpack_from("<IHB", blob, place)
        parts += blob[place + HEADER : place + HEADER + size]
        place += HEADER + size
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            found.append(record)
            parts = b""
    return found


def of_kind(found: list[Any], kind: str) -> list[Any]:
    return [getattr(record, kind) for record in found if record.WhichOneof("record_type") == kind]


def merged(updates: list[Any]) -> dict[str, Any]:
    """Return the values that updates of a config, a summary or a history leave, by the paths of their keys."""
    return {"/".join([*update.nested_key] or [update.key]): json.loads(update.value_json) for update in updates}

"""Read named files of a tar, a zip or a folder; nothing is written, so no path in it can lead anywhere."""

import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple


class Limits(NamedTuple):
    """What an archive may hold at most, unpacked; more is a bomb or another archive.

    Attributes:
        member: bytes of one file.
        total: bytes of all files that are read or passed over.
    """

    member: int
    total: int


def read_members(
    source: Path, base: str, is_wanted: Callable[[str], bool], *, limits: Limits, cure: str
) -> Iterator[tuple[str, bytes]]:
    """Yield the wanted files, each as its name below `base` and its contents, in the order of the source.

    Args:
        source: a .zip, a .tar or a compressed .tar with a folder `base` in it, or that folder, or its parent.
        base: the folder at the top of the official archive.
        is_wanted: takes a name below `base`.
        limits: what it may hold.
        cure: how to get a good one, for messages.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: the archive is damaged, holds more than it may, or a path that leads out of it.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist; give {cure}")
    if source.is_dir():
        yield from _of_folder(source, base, is_wanted)
        return
    members = _of_zip if zipfile.is_zipfile(source) else _of_tar
    try:
        yield from members(source, base, is_wanted, limits)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as err:
        # OSError: what gzip says of another file, and a disk that cannot be read
        reason = " ".join(str(err).split())
        raise ValueError(
            f"{source} is damaged: expected the official archive, got {type(err).__name__} ({reason}); "
            f"delete it and run again, or give {cure}"
        ) from err
    except _UnfitError as err:
        raise ValueError(f"{source}: {err}; it is not the official archive: give {cure}") from err


class _UnfitError(Exception):
    """The archive can be read, and holds what it must not."""


def _of_folder(source: Path, base: str, is_wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    root = source / base if (source / base).is_dir() else source
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if is_wanted(name) and path.is_file():
            yield name, path.read_bytes()


def _of_zip(source: Path, base: str, is_wanted: Callable[[str], bool], limits: Limits) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(source) as archive:
        members = [(_below(base, info.filename), info) for info in archive.infolist() if not info.is_dir()]
        wanted = [(name, info) for name, info in members if name is not None and is_wanted(name)]
        total = 0
        for name, info in wanted:  # all sizes before the first byte
            total = _admitted(name, info.file_size, total, limits)
        for name, info in wanted:
            if info.flag_bits & 1:
                raise _UnfitError(f"{name} is encrypted")
            yield name, archive.read(info)


def _of_tar(source: Path, base: str, is_wanted: Callable[[str], bool], limits: Limits) -> Iterator[tuple[str, bytes]]:
    total = 0
    with tarfile.open(source, "r:*") as archive:
        for member in archive:
            name = _below(base, member.name)
            # also of what is not wanted: passing over it unpacks it
            total = _admitted(member.name, member.size, total, limits)
            if name is None or not is_wanted(name):
                continue
            stream = archive.extractfile(member) if member.isfile() else None
            if stream is None:
                raise _UnfitError(f"expected {name} to be a file, got tar type {member.type!r}")
            yield name, stream.read()


def _below(base: str, name: str) -> str | None:
    """Return the name below the base folder, or None for what lies beside it."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise _UnfitError(f"holds a path that leads out of it ({name!r})")
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else None


def _admitted(name: str, size: int, total: int, limits: Limits) -> int:
    if size > limits.member:
        raise _UnfitError(f"expected {name} to have at most {limits.member} bytes, got {size} bytes")
    if total + size > limits.total:
        raise _UnfitError(f"expected files of at most {limits.total} bytes together, got more at {name}")
    return total + size

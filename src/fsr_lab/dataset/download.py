"""Fetch one file from the first source that has it whole and gives it at a bearable pace."""

import errno
import hashlib
import http.client
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from fsr_lab.dataset.progress import progress

log = logging.getLogger(__name__)

MIN_RATE = 200_000
"""Bytes a second; a host below it is left. cs.toronto.edu gave 50 to 85 kB/s in 2026 (pytorch/vision#9536)."""

WINDOW_SECONDS = 15.0
"""How long a host may stay below that rate, or silent."""

_CHUNK = 1 << 18


def fetch(folder: Path, name: str, urls: Sequence[str], *, md5: str, offline: str) -> tuple[Path, str]:
    """Return a file of a folder and where it comes from; it is downloaded if it is not there.

    Args:
        folder: where the file lies or will lie.
        name: its name.
        urls: sources of the same bytes, in the order in which they are tried.
        md5: its checksum.
        offline: what to do when no source answers.

    Raises:
        OSError: as `download`.
    """
    target = folder / name
    return target, str(target) if target.exists() else download(urls, target, md5=md5, offline=offline)


def download(
    urls: Sequence[str],
    target: Path,
    *,
    md5: str,
    offline: str,
    min_rate: float = MIN_RATE,
    window_seconds: float = WINDOW_SECONDS,
) -> str:
    """Bring a file here: sources in order, a broken transfer resumed, named once its checksum agrees.

    A host that is silent or below `min_rate` for `window_seconds` has failed and the next one continues where it
    stopped. Where all others have failed too, the slow ones are asked again, and then may be slow: the line is to
    blame.

    Args:
        urls: sources of the same bytes, the best first.
        target: the file's name; until it is whole it is called `<target>.part`.
        md5: its checksum.
        offline: what to do when no source answers.
        min_rate: bytes a second.
        window_seconds: over how long the rate is measured.

    Returns:
        The source that served.

    Raises:
        OSError: no source served (the message lists why, source by source), or the disk is full.
    """
    part = target.with_name(f"{target.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    failures: dict[str, str] = {}
    slow: list[str] = []

    def attempts() -> Iterator[tuple[str, float]]:
        yield from ((url, min_rate) for url in urls)
        yield from ((url, 0.0) for url in slow)

    for url, floor in attempts():
        try:
            _fetch(url, part, md5, floor, window_seconds)
        except (OSError, http.client.HTTPException, _UnusableError) as err:
            if isinstance(err, OSError) and err.errno == errno.ENOSPC:
                part.unlink(missing_ok=True)
                message = f"no space left on the disk of {target.parent}: free some and run again"
                raise OSError(errno.ENOSPC, message, str(target)) from err
            if isinstance(err, _SlowError):
                slow.append(url)
            failures[url] = str(err) or type(err).__name__
            log.warning("%s: %s", url, failures[url])
        else:
            os.replace(part, target)
            return url
    reasons = "; ".join(f"{url}: {reason}" for url, reason in failures.items())
    raise OSError(f"no source gave {target.name} ({reasons}); without a network: {offline}")


def md5_of(path: Path) -> str:
    """Return a file's md5 as hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


class _UnusableError(Exception):
    """What lies in the part file is not the beginning of the file that was asked for."""


class _SlowError(OSError):
    """The host gives less than it should."""


def _fetch(url: str, part: Path, md5: str, min_rate: float, window: float) -> None:
    resumed = part.exists()
    try:
        _transfer(url, part, min_rate, window)
        got = md5_of(part)
        if got != md5:
            raise _UnusableError(f"expected md5 {md5}, got {got}")
    except _UnusableError:
        part.unlink()
        if not resumed:
            raise
        _fetch(url, part, md5, min_rate, window)  # the old part was to blame, or the source is: the whole will tell


def _transfer(url: str, part: Path, min_rate: float, window: float) -> None:
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "fsr-lab"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        request = urllib.request.Request(url, headers=headers)
        response = urllib.request.urlopen(request, timeout=window)
    except urllib.error.HTTPError as err:
        err.close()
        if err.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            return  # nothing is left to fetch: the checksum says whether that is the file
        raise
    with response:
        if response.status != http.client.PARTIAL_CONTENT:
            have = 0  # the source does not resume and sends everything
        total = have + int(response.headers.get("Content-Length", 0))
        with part.open("ab" if have else "wb") as stream, progress(part.stem, total, done=have, in_bytes=True) as show:
            watch = _pace(min_rate, window)
            while chunk := response.read1(_CHUNK):  # what has arrived; `read` would wait for a whole chunk
                stream.write(chunk)
                show(len(chunk))
                watch(len(chunk))
    if (got := part.stat().st_size) < total:
        raise OSError(f"broke off after {got} of {total} bytes")


def _pace(min_rate: float, window: float) -> Callable[[int], None]:
    """Return a function that takes counts of bytes and raises once a window went by with too few."""
    since, count = time.monotonic(), 0

    def watch(more: int) -> None:
        nonlocal since, count
        count += more
        passed = time.monotonic() - since
        if passed >= window:
            if count < min_rate * passed:
                rate = f"{count / passed / 1e3:.0f} kB/s"
                raise _SlowError(f"too slow: {rate} where {min_rate / 1e3:.0f} kB/s are expected")
            since, count = time.monotonic(), 0

    return watch

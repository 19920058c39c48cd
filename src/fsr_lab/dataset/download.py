"""Fetch one file from the first source that has it whole."""

import errno
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn
from torchvision.datasets.utils import calculate_md5

_CHUNK = 1 << 18
_TIMEOUT_SECONDS = 30


def download(urls: Sequence[str], target: Path, *, md5: str, offline: str) -> str:
    """Bring a file here: sources in order, a broken transfer resumed, named once its checksum agrees.

    Args:
        urls: sources of the same bytes, the best first.
        target: the file's name; until it is whole it is called `<target>.part`.
        md5: its checksum.
        offline: what to do when no source answers.

    Returns:
        The source that served.

    Raises:
        OSError: no source served (the message lists why, source by source), or the disk is full.
    """
    part = target.with_name(f"{target.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    failures = []
    for url in urls:
        try:
            _fetch(url, part, md5)
        except (OSError, http.client.HTTPException, _UnusableError) as err:
            if isinstance(err, OSError) and err.errno == errno.ENOSPC:
                part.unlink(missing_ok=True)
                message = f"no space left on the disk of {target.parent}: free some and run again"
                raise OSError(errno.ENOSPC, message, str(target)) from err
            failures.append(f"{url}: {err}")
        else:
            os.replace(part, target)
            return url
    raise OSError(f"no source gave {target.name} ({'; '.join(failures)}); without a network: {offline}")


class _UnusableError(Exception):
    """What lies in the part file is not the beginning of the file that was asked for."""


def _fetch(url: str, part: Path, md5: str) -> None:
    resumed = part.exists()
    try:
        _transfer(url, part)
        got = calculate_md5(part)
        if got != md5:
            raise _UnusableError(f"expected md5 {md5}, got {got}")
    except _UnusableError:
        part.unlink()
        if not resumed:
            raise
        _fetch(url, part, md5)  # the old part was to blame, or the source is: the whole file will tell


def _transfer(url: str, part: Path) -> None:
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "fsr-lab"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        request = urllib.request.Request(url, headers=headers)
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as err:
        err.close()
        if err.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            return  # nothing is left to fetch: the checksum says whether that is the file
        raise
    with response:
        if response.status != http.client.PARTIAL_CONTENT:
            have = 0  # the source does not resume and sends everything
        total = have + int(response.headers.get("Content-Length", 0))
        with part.open("ab" if have else "wb") as stream, _progress(part.stem, total, have) as advance:
            while chunk := response.read(_CHUNK):
                stream.write(chunk)
                advance(len(chunk))
    if (got := part.stat().st_size) < total:
        raise OSError(f"broke off after {got} of {total} bytes")


@contextmanager
def _progress(label: str, total: int, have: int) -> Iterator[Callable[[int], None]]:
    """Show a bar with the time that remains on a terminal, a line for every tenth elsewhere."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with Progress(f"{label}", *columns, console=console) as bar:
            task = bar.add_task(label, total=total or None, completed=have)
            yield lambda count: bar.advance(task, count)
        return
    done = have

    def advance(count: int) -> None:
        nonlocal done
        before, done = done, done + count
        if total and before * 10 // total < done * 10 // total:
            console.print(f"{label}: {done / 1e6:.1f} of {total / 1e6:.1f} MB", highlight=False)

    yield advance

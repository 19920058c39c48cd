"""How far a long piece of work is: a bar on a terminal, a line for every tenth elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


@contextmanager
def progress(label: str, total: int, *, done: int = 0, in_bytes: bool = False) -> Iterator[Callable[[int], None]]:
    """Show the progress of the block.

    Args:
        label: what is being done.
        total: how much there is; 0 if nobody knows.
        done: how much of it was done before.
        in_bytes: whether it is bytes that are counted, which are shown in MB.

    Yields:
        A function to call with how much more has been done.
    """
    console = Console(stderr=True)
    if console.is_terminal:
        amount: tuple[ProgressColumn, ...] = (MofNCompleteColumn(),)
        if in_bytes:
            amount = (DownloadColumn(), TransferSpeedColumn())
        with Progress(f"{label}", BarColumn(), *amount, TimeRemainingColumn(), console=console) as bar:
            task = bar.add_task(label, total=total or None, completed=done)
            yield lambda count: bar.advance(task, count)
        return

    def advance(count: int) -> None:
        nonlocal done
        before, done = done, done + count
        if total and before * 10 // total < done * 10 // total:
            amount = f"{done / 1e6:.1f} of {total / 1e6:.1f} MB" if in_bytes else f"{done} of {total}"
            console.print(f"{label}: {amount}", highlight=False)

    yield advance

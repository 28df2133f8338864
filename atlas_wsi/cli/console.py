"""What the user sees: messages, tables, progress. The only place that prints."""

from __future__ import annotations

import json
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from atlas_wsi.progress import silent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from atlas_wsi.errors import AtlasError
    from atlas_wsi.progress import Progress

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

_LINE_EVERY_S = 10.0


def say(text: str, *, quiet: bool = False) -> None:
    """Print a line of result or progress."""
    if not quiet:
        out.print(escape(text))


def warn(text: str, *, quiet: bool = False) -> None:
    """Print a warning to the error stream."""
    if not quiet:
        err.print(f"[yellow]warning:[/] {escape(text)}")


def fail(error: AtlasError) -> None:
    """Print an error and what to do about it to the error stream."""
    err.print(f"[red]error:[/] {escape(error.message)}")
    if error.hint:
        err.print(escape(error.hint))


def print_json(value: Any) -> None:
    """Print JSON, and nothing else, to the standard output."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def print_confusion(classes: Sequence[str], counts: Sequence[Sequence[int]]) -> None:
    """Print a confusion matrix, true class by row."""
    from rich.table import Table

    table = Table("true, predicted", *classes, box=None, pad_edge=False)
    for name, row in zip(classes, counts, strict=True):
        table.add_row(name, *(str(n) for n in row))
    out.print(table)


@contextmanager
def progress_of(title: str, *, quiet: bool) -> Iterator[Progress]:
    """Show progress: bars on a terminal, a plain line now and then in a log, or nothing."""
    if quiet:
        yield silent
    elif err.is_terminal:
        with _bars(title) as report:
            yield report
    else:
        yield _Lines(title)


@contextmanager
def _bars(title: str) -> Iterator[Progress]:
    from rich import progress as bars

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
        bars.TimeRemainingColumn(),
    )
    tasks: dict[str, bars.TaskID] = {}
    with bars.Progress(*columns, console=err, transient=True) as shown:

        def report(what: str, done: int, total: int) -> None:
            text = escape(f"{title}: {what}")
            step = what.partition(" (")[0]  # what stands in brackets changes on the way
            if step not in tasks:
                tasks[step] = shown.add_task(text, total=total)
            shown.update(tasks[step], description=text, completed=done, total=total)

        yield report


class _Lines:
    """Plain lines for a log: when a step ends, and every ten seconds."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._last = time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done < total and now - self._last < _LINE_EVERY_S:
            return
        self._last = now
        err.print(escape(f"{self._title}: {what} {done}/{total}"))

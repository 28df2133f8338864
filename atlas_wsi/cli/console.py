"""Messages, tables and progress; the only module that prints."""

from __future__ import annotations

import json
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from atlas_wsi import AtlasError, Progress

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
    """Print an error and its hint to the error stream."""
    err.print(f"[red]error:[/] {escape(error.message)}")
    if error.hint:
        err.print(escape(error.hint))


def print_json(value: Any) -> None:
    """Print JSON, and nothing else, to the standard output."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def print_table(
    rows: Iterable[Sequence[object]], *, header: Sequence[str] = (), wrap: str = ""
) -> None:
    """Print a table; the column named `wrap` gives way where the screen is narrow."""
    from rich.table import Column, Table
    from rich.text import Text

    columns = (
        Column(name, no_wrap=bool(wrap) and name != wrap, overflow="fold") for name in header
    )
    table = Table(*columns, box=None, show_header=bool(header), pad_edge=False)
    for row in rows:
        table.add_row(*(c if isinstance(c, Text) else Text(str(c)) for c in row))
    out.print(table)


def print_confusion(classes: Sequence[str], counts: Sequence[Sequence[int]]) -> None:
    """Print a confusion matrix, true class by row."""
    rows = ((name, *row) for name, row in zip(classes, counts, strict=True))
    print_table(rows, header=("true, predicted", *classes))


def pixel_size(mpp: float, *, is_scene: bool) -> str:
    """Format the size of a pixel: micrometers of a slide, meters of a scene."""
    if not is_scene:
        return f"{mpp:.4g} um"
    return f"{mpp / 1e9:.4g} km" if mpp >= 1e9 else f"{mpp / 1e6:.4g} m"


@contextmanager
def progress_of(title: str, *, quiet: bool) -> Iterator[Progress]:
    """Show progress: bars on a terminal, a line every ten seconds in a log, or nothing."""
    if quiet:
        yield lambda *_: None
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

        def report(step: str, done: int, total: int) -> None:
            text = escape(f"{title}: {step}")
            step = step.partition(" (")[0]  # the part in brackets changes on the way
            if step not in tasks:
                tasks[step] = shown.add_task(text, total=total)
            shown.update(tasks[step], description=text, completed=done, total=total)

        yield report


class _Lines:
    """Plain lines for a log: when a step ends, and every ten seconds."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._last = time.monotonic()

    def __call__(self, step: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done < total and now - self._last < _LINE_EVERY_S:
            return
        self._last = now
        err.print(escape(f"{self._title}: {step} {done}/{total}"))

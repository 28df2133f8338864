"""Messages, tables and progress; the only module that prints."""

from __future__ import annotations

import json
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape

from atlas_wsi.errors import AtlasError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from atlas_wsi import Progress

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

INCOMPLETE = 4
"""Exit code when too much of a slide could not be read."""
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


def run_each(
    items: Sequence[Any], run: Callable[[Any], dict[str, Any]], *, key: str, as_json: bool
) -> list[dict[str, Any]]:
    """Do each item: one that fails does not stop the others, and the exit code reports it."""
    done: list[dict[str, Any]] = []
    worst: AtlasError | None = None
    for item in items:
        try:
            done.append(run(item))
        except AtlasError as error:
            if len(items) == 1 or error.exit_code > 100:
                raise
            fail(error)
            done.append({key: str(item), "error": error.message})
            worst = error
    if as_json:
        print_json(done)
    if worst is not None:
        raise typer.Exit(worst.exit_code)
    return done


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


def format_value(value: Any, *, most: int = 200) -> str:
    """Format a value of JSON in one line, cut to `most` characters each text."""
    if isinstance(value, dict):
        return ", ".join(f"{k} {format_value(v, most=most)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(format_value(v, most=most) for v in value)
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value).replace("\n", " ")
    return text if len(text) <= most else f"{text[: most - 3]}..."


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
        yield _lines(title)


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


def _lines(title: str) -> Progress:
    last = time.monotonic()

    def report(step: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done >= total or now - last >= _LINE_EVERY_S:
            last = now
            err.print(escape(f"{title}: {step} {done}/{total}"))

    return report

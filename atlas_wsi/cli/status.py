"""`atlas-wsi status`."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated

import typer

from atlas_wsi.cli import console, options

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rich.console import RenderableType

    from atlas_wsi import ArchiveStatus

SHOWN = 20
DAMAGED = 2


def status(
    out: options.ArchiveFolder,
    watch: Annotated[
        bool, typer.Option("--watch", help="Refresh the display until all slides have ended.")
    ] = False,
    every: Annotated[
        float, typer.Option(metavar="SECONDS", help="Seconds between two refreshes.", min=0.1)
    ] = 2.0,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Check finished results; exit code 2 if any is damaged."),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object; with --watch one per line.")
    ] = False,
) -> None:
    """Show the progress of a batch run.

    Lists how many slides are done, running, waiting and failed, the speed, and the time left.
    """
    from atlas_wsi import archive_status, verify_archive

    if watch:
        _watch(out, every, as_json=as_json)
        return
    current = archive_status(out)
    damaged = {}
    if verify:
        with console.progress_of("archive", quiet=as_json) as report:
            damaged = verify_archive(out, progress=report)
    if as_json:
        console.print_json(current.as_json() | ({"damaged": damaged} if verify else {}))
    else:
        console.out.print(_page(current))
        for name, damage in damaged.items():
            console.say(f"damaged: {name}: {damage}")
    if damaged:
        raise typer.Exit(DAMAGED)


def describe(current: ArchiveStatus) -> str:
    """Summarize the progress of an archive in one line."""
    text = ", ".join(f"{current.count(s)} {s}" for s in ("done", "running", "waiting", "failed"))
    if current.n_incomplete:
        text += f" ({current.n_incomplete} incomplete)"
    if current.slides_per_hour is not None:
        text += f"; {current.slides_per_hour:.4g} slides per hour"
    if current.eta_s:
        text += f", about {_duration(current.eta_s)} left"
    return text


def show_failed(current: ArchiveStatus, *, quiet: bool) -> None:
    """Print which slides failed and why, also if quiet, then to the error stream."""
    show = console.warn if quiet else console.say
    failed = [slide for slide in current.slides if slide.state == "failed"]
    for slide in failed[:SHOWN]:
        show(f"  failed: {slide.name}: {slide.reason}")
    if len(failed) > SHOWN:
        show(f"  and {len(failed) - SHOWN} more")


def _page(current: ArchiveStatus) -> RenderableType:
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("state", "slide", "attempts", "since", "worker", "reason"):
        table.add_column(title, overflow="fold")
    rows = [s for state in ("running", "failed") for s in current.slides if s.state == state]
    for slide in rows[:SHOWN]:
        cells = (slide.state, slide.name, str(slide.attempts), slide.since[:19], slide.worker)
        table.add_row(*(escape(cell) for cell in (*cells, slide.reason)))
    parts: list[RenderableType] = [describe(current)]
    if rows:
        parts.append(table)
    if len(rows) > SHOWN:
        parts.append(f"and {len(rows) - SHOWN} more (--json lists all)")
    return Group(*parts)


def _watch(out: Path, every: float, *, as_json: bool) -> None:
    from rich.live import Live

    from atlas_wsi import archive_status

    def states() -> Iterator[ArchiveStatus]:
        yield (current := archive_status(out))
        while current.count("running") + current.count("waiting"):
            time.sleep(every)
            yield (current := archive_status(out))

    if as_json:
        for current in states():
            typer.echo(json.dumps(current.as_json(), ensure_ascii=False))
        return
    with Live(console=console.out, auto_refresh=False) as live:
        for current in states():
            live.update(_page(current), refresh=True)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    days, hours, minutes = minutes // 1440, minutes // 60 % 24, minutes % 60
    return (
        f"{days} d {hours} h" if days else f"{hours} h {minutes} min" if hours else f"{minutes} min"
    )

"""`atlas-wsi status`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atlas_wsi.cli import console

if TYPE_CHECKING:
    from rich.console import RenderableType

    from atlas_wsi.batch.status import Status

SHOWN = 20
DAMAGED = 2


def status(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Output folder of `atlas-wsi batch`.")],
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it anew every few seconds until all have ended.")
    ] = False,
    every: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.1)] = 2.0,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Read finished results again; exit code 2 if one is damaged."
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object; with --watch one a line.")
    ] = False,
) -> None:
    """Tell how an archive stands: done, running, waiting, failed, speed, and time left."""
    from atlas_wsi.batch.status import archive_status

    if watch:
        _watch(out, every, as_json=as_json)
        return
    found = archive_status(out)
    damaged = _verify(out, quiet=as_json) if verify else {}
    if as_json:
        console.print_json(found.as_json() | ({"damaged": damaged} if verify else {}))
    else:
        console.out.print(_page(found))
        for name, damage in damaged.items():
            console.say(f"damaged: {name}: {damage}")
    if damaged:
        raise typer.Exit(DAMAGED)


def describe(found: Status) -> str:
    """Say in a line how an archive stands."""
    text = ", ".join(f"{found.count(s)} {s}" for s in ("done", "running", "waiting", "failed"))
    if found.slides_per_hour is not None:
        text += f"; {found.slides_per_hour:.4g} slides an hour"
    if found.eta_s:
        text += f", about {_duration(found.eta_s)} left"
    return text


def tell_failed(found: Status, shown: int, *, quiet: bool) -> None:
    """Print which slides failed and why."""
    failed = [slide for slide in found.slides if slide.state == "failed"]
    for slide in failed[:shown]:
        console.say(f"  failed: {slide.name}: {slide.reason}", quiet=quiet)
    if len(failed) > shown:
        console.say(f"  and {len(failed) - shown} more", quiet=quiet)


def _page(found: Status) -> RenderableType:
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("state", "slide", "tries", "since", "worker", "reason"):
        table.add_column(title, overflow="fold")
    order = ("running", "failed")
    rows = sorted((s for s in found.slides if s.state in order), key=lambda s: order.index(s.state))
    for slide in rows[:SHOWN]:
        cells = (slide.state, slide.name, str(slide.tries), slide.since[:19], slide.worker)
        table.add_row(*(escape(cell) for cell in (*cells, slide.reason)))
    parts: list[RenderableType] = [describe(found)]
    if rows:
        parts.append(table)
    if len(rows) > SHOWN:
        parts.append(f"and {len(rows) - SHOWN} more (--json lists all)")
    return Group(*parts)


def _watch(out: Path, every: float, *, as_json: bool) -> None:
    import json

    from rich.live import Live

    from atlas_wsi.batch.status import archive_status

    if as_json:
        while True:
            found = archive_status(out)
            typer.echo(json.dumps(found.as_json(), ensure_ascii=False))
            if not _open(found):
                return
            time.sleep(every)
    found = archive_status(out)
    with Live(_page(found), console=console.out, auto_refresh=False) as live:
        while _open(found):
            time.sleep(every)
            found = archive_status(out)
            live.update(_page(found), refresh=True)


def _open(found: Status) -> int:
    return found.count("running") + found.count("waiting")


def _verify(out: Path, *, quiet: bool) -> dict[str, str]:
    from atlas_wsi.batch.journal import Journal
    from atlas_wsi.batch.verify import find_damaged

    with console.progress_of("archive", quiet=quiet) as report:
        return find_damaged(Journal(out), report)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    days, hours, minutes = minutes // 1440, minutes // 60 % 24, minutes % 60
    return (
        f"{days} d {hours} h" if days else f"{hours} h {minutes} min" if hours else f"{minutes} min"
    )

"""`atlas-wsi report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from atlas_wsi.cli import console


def report(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Output folder of `atlas-wsi batch`.")],
    viewer_px: Annotated[
        int,
        typer.Option(
            help="Longest side of the slides' pictures in pixels; 0 draws none.", min=0, max=16384
        ),
    ] = 2048,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print the page's path only.")
    ] = False,
) -> None:
    """Write OUT/report/: pages about an archive for a browser, without a server.

    A gallery that can be sorted and searched, a page with a zoomable picture a slide, histograms
    over all slides, and what failed.
    """
    from atlas_wsi.batch.report import write_report

    with console.progress_of("report", quiet=quiet) as progress:
        page = write_report(out, viewer_px=viewer_px, progress=progress)
    console.say(str(page))

"""`atlas-wsi report`."""

from __future__ import annotations

from typing import Annotated

import typer

from atlas_wsi.cli import console, options


def report(
    out: options.ArchiveFolder,
    viewer_px: Annotated[
        int,
        typer.Option(
            metavar="PIXELS",
            help="Longest side of the slide images; 0 draws none.",
            min=0,
            max=16384,
        ),
    ] = 2048,
    quiet: options.Quiet = False,
) -> None:
    """Write a browsable report of an archive to FOLDER/report/.

    A gallery that can be sorted and searched, one page with a zoomable image per slide, histograms
    over all slides, and the failures with their reasons. The pages need no server.
    """
    from atlas_wsi import write_report

    with console.progress_of("report", quiet=quiet) as progress:
        page = write_report(out, viewer_px=viewer_px, progress=progress)
    console.say(str(page))

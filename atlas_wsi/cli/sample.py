"""`atlas-wsi sample`."""

from __future__ import annotations

from typing import Annotated

import typer

from atlas_wsi.cli import console


def sample(
    name: Annotated[str, typer.Argument(help="Name of the sample.")] = "cmu-1-small-region",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the path only.")] = False,
) -> None:
    """Get a small real slide, check it, and print where it is."""
    from atlas_wsi.slides.samples import fetch_sample

    with console.progress_of(name, quiet=quiet) as report:
        path = fetch_sample(name, progress=report)
    console.say(str(path))

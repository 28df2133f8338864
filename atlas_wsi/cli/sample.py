"""`atlas-wsi sample`."""

from __future__ import annotations

from typing import Annotated

import typer

from atlas_wsi.cli import console, options


def sample(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of the sample.")
    ] = "cmu-1-small-region",
    quiet: options.Quiet = False,
) -> None:
    """Download a small public slide, verify it and print its path."""
    from atlas_wsi import fetch_sample

    with console.progress_of(name, quiet=quiet) as report:
        path = fetch_sample(name, progress=report)
    console.say(str(path))

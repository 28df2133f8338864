"""`atlas-wsi inspect`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from atlas_wsi.cli import console, options

_SHOWN = 25


def inspect(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A result, archive, model, HDF5, Zarr, GeoJSON, JSON, CSV, Parquet or slide, "
            "from this program or another.",
        ),
    ],
    as_json: options.AsJson = False,
) -> None:
    """Identify a file or folder, its origin and its uses.

    Shows what it is, which program writes it, and which commands take it. Files are recognized
    by content. Nothing in them is executed.
    """
    from atlas_wsi import inspect_file

    seen = inspect_file(file)
    if as_json:
        console.print_json({"path": str(file), **asdict(seen)})
        return
    by = f", as written by {seen.writer}" if seen.writer else ""
    console.say(f"{file}: {seen.kind}{by}")
    for name, value in seen.facts.items():
        if value in (None, "", [], {}):
            continue
        console.say(f"  {name.replace('_', ' ')}: {console.format_value(value)}")
    if seen.parts:
        console.say("inside:")
    for part in seen.parts[:_SHOWN]:
        shape = " x ".join(map(str, part.shape))
        console.say(f"  {part.name}  {part.dtype} {shape}".rstrip())
        for name, value in part.attributes.items():
            console.say(f"    {name}: {console.format_value(value)}")
    if len(seen.parts) > _SHOWN:
        console.say(f"  and {len(seen.parts) - _SHOWN} more (--json lists them)")
    for warning in seen.warnings:
        console.warn(warning)
    if seen.uses:
        console.say("taken by:")
    for use in seen.uses:
        console.say(f"  {use.replace('FILE', str(file))}")

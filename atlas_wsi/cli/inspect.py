"""`atlas-wsi inspect`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from atlas_wsi.cli import console

_SHOWN = 25


def inspect(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="File or folder: a result, archive, model, HDF5, Zarr, GeoJSON, JSON, CSV, "
            "Parquet or slide, of this program or of another.",
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what is in a file or folder, who wrote it, and which command takes it.

    Files are recognized by what is in them. Nothing in them is run, and little of it is read.
    """
    from atlas_wsi.interop.inspect import inspect_file

    found = inspect_file(file)
    if as_json:
        console.print_json({"path": str(file), **asdict(found)})
        return
    by = f", as {found.writer} writes it" if found.writer else ""
    console.say(f"{file}: {found.kind}{by}")
    for name, value in found.facts.items():
        if value in (None, "", [], {}):
            continue
        console.say(f"  {name.replace('_', ' ')}: {_text(value)}")
    if found.parts:
        console.say("inside:")
    for part in found.parts[:_SHOWN]:
        shape = " x ".join(map(str, part.shape))
        console.say(f"  {part.name}  {part.dtype} {shape}".rstrip())
        for name, value in part.attributes.items():
            console.say(f"    {name}: {_text(value)}")
    if len(found.parts) > _SHOWN:
        console.say(f"  and {len(found.parts) - _SHOWN} more (--json lists them)")
    for warning in found.warnings:
        console.warn(warning)
    if found.uses:
        console.say("taken by:")
    for use in found.uses:
        console.say(f"  {use.replace('FILE', str(file))}")


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_text(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value).replace("\n", " ")
    return text if len(text) <= 200 else f"{text[:197]}..."

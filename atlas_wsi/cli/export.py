"""`atlas-wsi export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from atlas_wsi.cli import console, options
from atlas_wsi.errors import AtlasError


def export(
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULT...",
            help="Folders that `predict` or `batch` wrote: of one slide, or of many.",
        ),
    ],
    to: Annotated[
        options.ExportFormat,
        typer.Option(help="Format to write; docs/interop.md lists the programs that open it."),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="File to write, or a folder for one file per slide."),
    ],
    slide: Annotated[
        str | None,
        typer.Option(
            help="Path of the slide, if it was moved; for png, html and spatialdata of one result."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Overwrite existing files.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON list of the files.")
    ] = False,
) -> None:
    """Export results for QuPath, GIS, WSInfer, TRIDENT, CLAM and others.

    Files are written atomically. If a result cannot be exported, the
    others still are, and the exit code is not 0.
    """
    from atlas_wsi import EXPORT_FORMATS, export_result, find_results

    quiet = quiet or as_json
    folders = [folder for path in results for folder in find_results(path)]
    is_file = out.suffix.lower() in EXPORT_FORMATS[to].suffixes
    if len(folders) > 1 and (is_file or slide):
        option = "--slide" if slide else f"--out {out}"
        raise typer.BadParameter(f"{option} is for one result; {len(folders)} are given")
    done: list[dict[str, Any]] = []
    worst: AtlasError | None = None
    for folder in folders:
        try:
            with console.progress_of(folder.name, quiet=quiet) as report:
                written = export_result(
                    folder, out, to=to, slide=slide, overwrite=overwrite, progress=report
                )
        except AtlasError as error:
            if len(folders) == 1:
                raise
            console.fail(error)
            done.append({"result": str(folder), "error": error.message})
            worst = error
            continue
        for warning in written.warnings:
            console.warn(warning, quiet=quiet)
        console.say(str(written.path), quiet=quiet)
        done.append(
            {
                "result": str(folder),
                "file": str(written.path),
                "warnings": list(written.warnings),
            }
        )
    if as_json:
        console.print_json(done)
    if worst is not None:
        raise typer.Exit(worst.exit_code)

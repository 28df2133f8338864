"""`atlas-wsi export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from atlas_wsi.cli import console, options


def export(
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULT",
            help="Folders written by `predict` or `batch`: of one slide, or of many.",
        ),
    ],
    to: options.To,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="PATH",
            help="File to write, or a folder with one file per slide.",
        ),
    ],
    slide: Annotated[
        str | None,
        typer.Option(
            metavar="SLIDE",
            help="Current path of the slide, for png, html and spatialdata of one result.",
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Convert results for other programs.

    For QuPath, GIS, the Digital Slide Archive, WSInfer, TRIDENT and others. Files are written atomically. If one of several results cannot be exported, the others still
    are, and the exit code reports it.
    """
    from atlas_wsi import EXPORT_FORMATS, export_result, find_results

    quiet = quiet or as_json
    folders = [folder for path in results for folder in find_results(path)]
    is_file = out.suffix.lower() in EXPORT_FORMATS[to].suffixes
    if len(folders) > 1 and (is_file or slide):
        option = "--slide" if slide else f"--out {out}"
        raise typer.BadParameter(f"{option} is for one result; {len(folders)} are given")

    def run(folder: Path) -> dict[str, Any]:
        with console.progress_of(folder.name, quiet=quiet) as report:
            written = export_result(
                folder, out, to=to, slide=slide, overwrite=overwrite, progress=report
            )
        for warning in written.warnings:
            console.warn(warning, quiet=quiet)
        file = str(written.path)
        console.say(file, quiet=quiet)
        return {"result": str(folder), "file": file, "warnings": list(written.warnings)}

    console.run_each(folders, run, key="result", as_json=as_json)

"""`atlas-wsi export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from atlas_wsi.cli import console
from atlas_wsi.errors import AtlasError

To = Literal[
    "qupath",
    "cog",
    "dsa",
    "wsinfer-csv",
    "trident-h5",
    "clam-h5",
    "stamp-h5",
    "spatialdata",
    "png",
    "html",
]


def export(
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULT...",
            help="Folders that `predict` or `batch` wrote: of one slide, or of many.",
        ),
    ],
    to: Annotated[To, typer.Option(help="What to write; docs/interop.md says what opens it.")],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="File to write, or a folder for a file a slide."),
    ],
    slide: Annotated[
        str | None,
        typer.Option(help="Where the slide is now, for png, html and spatialdata of one result."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON list of the files.")
    ] = False,
) -> None:
    """Write results as QuPath, GIS, the Digital Slide Archive, WSInfer, TRIDENT and others read them.

    Each file is there whole or not at all. One result that cannot be exported does not stop the
    others; the exit code tells.
    """
    from atlas_wsi.interop.export import EXPORTS, export_result, find_results

    quiet = quiet or as_json
    folders = [folder for path in results for folder in find_results(path)]
    is_file = out.suffix.lower() in EXPORTS[to].suffixes
    if len(folders) > 1 and (is_file or slide):
        what = "--slide" if slide else f"--out {out}"
        raise typer.BadParameter(f"{what} is for one result, there are {len(folders)}")
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

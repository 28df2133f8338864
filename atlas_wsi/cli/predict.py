"""`atlas-wsi predict`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atlas_wsi.cli import console, options

if TYPE_CHECKING:
    from atlas_wsi import SlideResult


def predict(
    slides: Annotated[
        list[str],
        typer.Argument(
            metavar="SLIDE", help="Slides or scenes: files, DICOM or OME-Zarr folders, URLs."
        ),
    ],
    out: options.OutFolder,
    model: options.ModelName = None,
    trust_model: options.TrustModel = False,
    mpp: options.Mpp = None,
    gsd: options.Gsd = None,
    scale: options.Scale = None,
    image: options.ImageNumber = None,
    allow_truncated: options.AllowTruncated = False,
    max_unreadable: options.MaxUnreadable = 0.01,
    cell_px: options.CellPx = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    memory: options.Memory = None,
    batch_size: options.BatchSize = None,
    formats: options.Formats = None,
    tissue: options.Tissue = None,
    tissue_model: options.TissueModel = None,
    roi: options.Roi = None,
    keep_fat: options.KeepFat = False,
    strict: options.Strict = False,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Predict a heatmap of class probabilities for slides and scenes.

    Writes OUT/SLIDE/: heatmap.ome.zarr, heatmap.png, regions.geojson, summary.json, and
    heatmap.tif for georeferenced scenes. Existing results are kept unless --overwrite. Re-run
    the same command to resume an interrupted run; intermediate data is kept in
    OUT/.SLIDE.work until then.

    Exit codes: 0 done, 2 bad input, 3 memory or disk, 4 a result is incomplete because too much
    of the tissue could not be read, 130 stopped.
    """
    options.one_tissue(tissue, tissue_model)
    quiet = quiet or as_json
    arguments = {
        "model": model,
        "trust_model": trust_model,
        "mpp": options.one_mpp(mpp, gsd),
        "scale": scale,
        "image": image,
        "allow_truncated": allow_truncated,
        "max_unreadable": max_unreadable,
        "cell_px": cell_px,
        "device": device,
        "precision": precision,
        "memory": memory,
        "batch_size": batch_size,
        "formats": formats,
        "tissue": tissue,
        "tissue_model": tissue_model,
        "roi": roi,
        "keep_fat": keep_fat,
        "strict": strict,
        "overwrite": overwrite,
    }
    from atlas_wsi import result_names

    names = result_names(slides)
    results = console.run_each(
        list(names),
        lambda path: _predict(path, out, {**arguments, "name": names[path]}, quiet=quiet),
        key="slide",
        as_json=as_json,
    )
    if any(result["incomplete"] for result in results):
        raise typer.Exit(console.INCOMPLETE)


def _predict(path: str, out: Path, arguments: dict[str, Any], *, quiet: bool) -> dict[str, Any]:
    from atlas_wsi import predict_to_folder

    title = Path(path.rstrip("/")).stem
    with console.progress_of(title, quiet=quiet) as report:
        result = predict_to_folder(
            path,
            out,
            **arguments,
            on_model=lambda name, why: console.say(f"{title}: model {name}, {why}", quiet=quiet),
            progress=report,
        )
    if not result.is_new:
        console.say(
            f"{title}: already done, in {result.folder} (--overwrite repeats it)", quiet=quiet
        )
    else:
        for warning in result.heatmap.run.warnings:
            console.warn(f"{title}: {warning}", quiet=quiet)
        _show(result, quiet=quiet)
    if result.heatmap.run.is_incomplete:
        console.warn(
            f"{title}: the result is incomplete: "
            f"{result.heatmap.run.unreadable_fraction:.1%} of the tissue could not be read"
        )
    return _as_json(result)


def _show(result: SlideResult, *, quiet: bool) -> None:
    areas = result.heatmap.areas()
    total, unit = sum(areas.values()), result.heatmap.area_unit.replace("2", "²")
    for name, area in sorted(areas.items(), key=lambda item: -item[1]):
        fraction = area / total if total else 0
        console.say(f"  {name:<28} {area:12.4g} {unit}  {fraction:6.1%}", quiet=quiet)
    for file in result.files.values():
        console.say(f"  {file}", quiet=quiet)


def _as_json(result: SlideResult) -> dict[str, Any]:
    heatmap = result.heatmap
    return {
        "slide": heatmap.slide.path,
        "folder": str(result.folder),
        "already_done": not result.is_new,
        "model": heatmap.run.model.name,
        "model_reason": heatmap.run.model.reason,
        "areas": heatmap.areas(),
        "area_unit": heatmap.area_unit,
        "scores": dict(heatmap.scores),
        "files": {kind: str(file) for kind, file in result.files.items()},
        "familiarity": heatmap.run.familiarity,
        "unreadable_fraction": heatmap.run.unreadable_fraction,
        "incomplete": heatmap.run.is_incomplete,
        "warnings": list(heatmap.run.warnings),
        "wall_s": heatmap.run.wall_s,
    }

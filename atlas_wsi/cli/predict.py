"""`atlas-wsi predict`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from atlas_wsi.cli import console
from atlas_wsi.errors import AtlasError, ResultExistsError

if TYPE_CHECKING:
    from atlas_wsi.heatmap.heatmap import Heatmap
    from atlas_wsi.models.model import Model
    from atlas_wsi.models.tile_classifier import TileClassifier
    from atlas_wsi.slides.slide import Slide

_CELL_PX = 64


def predict(
    slides: Annotated[
        list[str],
        typer.Argument(
            metavar="SLIDE...", help="Slides or scenes: files, folders of DICOM or OME-Zarr, URLs."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Folder for the results; each slide gets a folder in it."),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="Name of a shipped model, a .safetensors file, or a tile classifier: a folder with "
            "WSInfer's config.json. By default, what suits the file."
        ),
    ] = None,
    trust_model: Annotated[
        bool,
        typer.Option(
            "--trust-model",
            help="Run a TorchScript model; it is a program and may do what you may do.",
        ),
    ] = False,
    mpp: Annotated[
        float | None,
        typer.Option(
            help="Micrometers a pixel of the slide, if the file does not say or is wrong.", min=0
        ),
    ] = None,
    cell: Annotated[
        int, typer.Option(help="Side of a heatmap cell in working pixels: 16, 32 or 64.")
    ] = _CELL_PX,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        typer.Option(help="auto computes in bfloat16 where the hardware multiplies it."),
    ] = "auto",
    memory: Annotated[
        str | None,
        typer.Option(help="Memory for the encoder, such as 4GB. By default half of what is free."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Windows that attend at once. By default what fits.", min=1)
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            "-f",
            help="Output to write; may be given several times. By default all that suit the file.",
        ),
    ] = None,
    tissue: Annotated[
        Path | None,
        typer.Option(
            help="Where to predict, made elsewhere: a picture over the whole slide, black where "
            "there is no tissue; GeoJSON polygons; or HDF5 tiles of CLAM, TRIDENT, WSInfer or "
            "STAMP. By default tissue is found."
        ),
    ] = None,
    tissue_model: Annotated[
        str | None,
        typer.Option(help="Model with a class tissue that finds it, such as the shipped 'tissue'."),
    ] = None,
    roi: Annotated[
        Path | None,
        typer.Option(help="GeoJSON polygons: predict the tissue inside them only."),
    ] = None,
    keep_fat: Annotated[bool, typer.Option("--keep-fat", help="Take pale fat as tissue.")] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail at the first tile that cannot be read.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start anew where there is a result.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON list of the results.")
    ] = False,
) -> None:
    """Predict a heatmap of classes for slides and scenes.

    Writes OUT/SLIDE/: heatmap.ome.zarr, heatmap.png, regions.geojson, summary.json, and
    heatmap.tif for georeferenced scenes. A result that is there is left alone. A run that was
    stopped is gone on with by the same command; until then what it encoded lies in OUT/.SLIDE.work.
    """
    quiet = quiet or as_json
    _check_arguments(cell, memory, device)
    given = _tile_classifier(model, trust=trust_model) or model
    if given is not model and cell != _CELL_PX:
        raise typer.BadParameter("--cell: the cells of a tile classifier are its patches")
    done: list[dict[str, Any]] = []
    worst: AtlasError | None = None
    for path in slides:
        try:
            done.append(
                _one(
                    path,
                    out,
                    model=given,
                    mpp=mpp,
                    cell_px=cell,
                    device=device,
                    precision=precision,
                    memory=memory,
                    batch_size=batch_size,
                    formats=formats,
                    tissue=tissue,
                    tissue_model=tissue_model,
                    roi=roi,
                    keep_fat=keep_fat,
                    strict=strict,
                    overwrite=overwrite,
                    quiet=quiet,
                )
            )
        except AtlasError as error:
            if len(slides) == 1 or error.exit_code > 100:
                raise
            # one bad slide does not stop the others; the exit code tells
            console.fail(error)
            done.append({"slide": path, "error": error.message})
            worst = error
    if as_json:
        console.print_json(done)
    if worst is not None:
        raise typer.Exit(worst.exit_code)


def _check_arguments(cell: int, memory: str | None, device: str) -> None:
    """Refuse what cannot work before any slide is opened."""
    from atlas_wsi.streaming.device import choose_device
    from atlas_wsi.streaming.plan import parse_bytes

    if cell not in (16, 32, 64):
        raise typer.BadParameter(f"--cell is {cell}, expected 16, 32 or 64")
    try:
        parse_bytes(memory or 0)
    except ValueError as error:
        raise typer.BadParameter(f"--memory: {error}") from error
    choose_device(device)


def _tile_classifier(model: str | None, *, trust: bool) -> TileClassifier | None:
    from atlas_wsi.models.registry import is_tile_classifier
    from atlas_wsi.models.tile_classifier import load_tile_classifier

    if model is None or not is_tile_classifier(model):
        return None
    return load_tile_classifier(model, trust=trust)


def _choose(slide: Slide, model: TileClassifier | str | None) -> tuple[Model | TileClassifier, str]:
    from atlas_wsi.inference.predict import choose_model
    from atlas_wsi.models.tile_classifier import TileClassifier

    if isinstance(model, TileClassifier):
        return model, "patch by patch without context"
    return choose_model(slide, model)


def _one(
    path: str,
    out: Path,
    *,
    model: TileClassifier | str | None,
    mpp: float | None,
    quiet: bool,
    strict: bool,
    overwrite: bool,
    keep_fat: bool,
    tissue: Path | None,
    tissue_model: str | None,
    roi: Path | None,
    formats: list[str] | None,
    **options: Any,
) -> dict[str, Any]:
    from atlas_wsi.files import folder_name
    from atlas_wsi.heatmap.write import check_writable
    from atlas_wsi.inference.model_tissue import find_tissue
    from atlas_wsi.inference.predict import predict as run
    from atlas_wsi.models.registry import load_model
    from atlas_wsi.slides.open import open_slide
    from atlas_wsi.tissue.areas import read_areas, read_tissue
    from atlas_wsi.tissue.mask import tissue_mask

    with open_slide(path, mpp=mpp, strict=strict) as slide:
        slide.require_mpp()
        chosen, reason = _choose(slide, model)
        try:
            folder = check_writable(out, slide.name, overwrite=overwrite)
        except ResultExistsError as error:
            cell_px = getattr(chosen, "patch_px", options["cell_px"])
            return _already_done(
                error, out / folder_name(slide.name), slide, chosen, cell_px, quiet=quiet
            )
        console.say(f"{slide.name}: model {chosen.card.name}, {reason}", quiet=quiet)
        with console.progress_of(slide.name, quiet=quiet) as report:
            report("find tissue", 0, 1)
            if tissue:
                mask = read_tissue(tissue, slide)
            elif tissue_model:
                mask = find_tissue(slide, load_model(tissue_model))
            else:
                mask = tissue_mask(slide, keep_fat=keep_fat)
            if roi is not None:
                mask = mask.within(read_areas(roi, slide))
            report("find tissue", 1, 1)
            work = out / f".{folder.name}.work"
            if overwrite:
                shutil.rmtree(work, ignore_errors=True)
            result = run(slide, chosen, tissue=mask, progress=report, work=work, **options)
            files = result.write(
                out,
                formats=tuple(formats) if formats else None,
                thumbnail=slide.thumbnail(),
                overwrite=overwrite,
                progress=report,
            )
    for warning in result.run.warnings:
        console.warn(f"{slide.name}: {warning}", quiet=quiet)
    return _tell(result, folder, files, reason=reason, quiet=quiet)


def _already_done(
    error: ResultExistsError,
    folder: Path,
    slide: Slide,
    model: Model | TileClassifier,
    cell_px: int,
    *,
    quiet: bool,
) -> dict[str, Any]:
    """Say that a result is there, if it is the one that would be made."""
    from atlas_wsi.heatmap.write import open_result

    result = open_result(folder)
    same = (
        result.run.model.sha256 == model.sha256
        and result.slide.path == slide.path
        and result.slide.mpp == slide.require_mpp()
        and result.run.parameters.get("cell_px") == cell_px
    )
    if not same:
        raise error
    console.say(f"{slide.name}: done already, in {folder} (--overwrite starts anew)", quiet=quiet)
    return {
        "slide": slide.path,
        "folder": str(folder),
        "already_done": True,
        "areas": result.areas(),
        "scores": dict(result.scores),
    }


def _tell(
    result: Heatmap, folder: Path, files: dict[str, Path], *, reason: str, quiet: bool
) -> dict[str, Any]:
    areas = result.areas()
    total = sum(areas.values())
    unit = {"mm2": "mm²", "m2": "m²"}[result.area_unit]
    for name, area in sorted(areas.items(), key=lambda item: -item[1]):
        share = area / total if total else 0
        console.say(f"  {name:<28} {area:12.4g} {unit}  {share:6.1%}", quiet=quiet)
    for file in files.values():
        console.say(f"  {file}", quiet=quiet)
    return {
        "slide": result.slide.path,
        "folder": str(folder),
        "model": result.run.model.name,
        "model_reason": reason,
        "areas": areas,
        "area_unit": result.area_unit,
        "scores": dict(result.scores),
        "files": {kind: str(file) for kind, file in files.items()},
        "warnings": list(result.run.warnings),
        "wall_s": result.run.wall_s,
    }

"""`atlas-wsi embed`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from atlas_wsi.cli import console

if TYPE_CHECKING:
    from atlas_wsi.models.model import Model
    from atlas_wsi.models.timm_stem import TimmEncoder


def embed(
    slide: Annotated[str, typer.Argument(help="Slide: a file or a URL.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="HDF5 file to write, or a folder.")],
    model: Annotated[
        str | None, typer.Option(help="Shipped name, file or hf://owner/name@revision.")
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(help="A network of timm in the place of --model, such as timm:resnet18."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Weights file of --encoder, or none for random ones. By default timm's pretrained "
            "ones, from the cache or the hub."
        ),
    ] = None,
    work_mpp: Annotated[
        float | None,
        typer.Option(help="Micrometers a pixel that --encoder sees; 0.5 by default.", min=1e-3),
    ] = None,
    h5_flavor: Annotated[
        Literal["trident", "clam", "stamp"], typer.Option(help="Whose layout to write.")
    ] = "trident",
    tile_px: Annotated[
        int, typer.Option(help="Side of a tile at the model's resolution.", min=32, max=4096)
    ] = 224,
    min_tissue: Annotated[
        float, typer.Option(help="Least share of a tile that is tissue.", min=0, max=1)
    ] = 0.25,
    mpp: Annotated[
        float | None, typer.Option(help="Micrometers a pixel, if the file does not say.", min=1e-3)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Write the features of a slide's tiles to HDF5 for tools that learn from slide labels.

    Tiles lie edge to edge from the slide's origin; those without tissue are left out.
    """
    from atlas_wsi.errors import ResultExistsError
    from atlas_wsi.inference.embed import embed as run
    from atlas_wsi.inference.predict import choose_model
    from atlas_wsi.models.timm_stem import PREFIX, TimmEncoder
    from atlas_wsi.slides.open import open_slide
    from atlas_wsi.tissue.mask import tissue_mask

    if encoder is None and (weights is not None or work_mpp is not None):
        raise typer.BadParameter("--weights and --work-mpp go with --encoder")
    if encoder is not None and (model is not None or not encoder.startswith(PREFIX)):
        raise typer.BadParameter(f"--encoder is {PREFIX}NAME and takes the place of --model")
    with open_slide(slide, mpp=mpp) as opened:
        opened.require_mpp()
        path = out if out.suffix in {".h5", ".hdf5"} else out / f"{opened.name}.h5"
        if path.exists() and not overwrite:
            raise ResultExistsError(f"{path} is there.", hint="--overwrite replaces it.")
        chosen: Model | TimmEncoder
        if encoder is not None:
            chosen = TimmEncoder(encoder, weights=weights, mpp=work_mpp or 0.5)
            console.say(f"{opened.name}: {encoder} at {chosen.mpp:g} um/px", quiet=quiet)
        else:
            chosen, reason = choose_model(opened, model)
            console.say(f"{opened.name}: model {chosen.card.name}, {reason}", quiet=quiet)
        with console.progress_of(opened.name, quiet=quiet) as report:
            found = run(
                opened,
                chosen,
                tissue=tissue_mask(opened),
                tile_px=tile_px,
                min_tissue=min_tissue,
                progress=report,
            )
    found.write(path, flavor=h5_flavor, overwrite=overwrite)
    console.say(
        f"{path}: {len(found.values)} tiles, {found.values.shape[1]} features each", quiet=quiet
    )

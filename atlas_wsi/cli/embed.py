"""`atlas-wsi embed`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from atlas_wsi.cli import console, options
from atlas_wsi.errors import ResultExistsError


def embed(
    slide: options.SlidePath,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="PATH", help="HDF5 file to write, or a folder.")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Bundled name, file or hf://owner/name@revision. Default: chosen by the kind of "
            "file.",
        ),
    ] = None,
    encoder: options.Encoder = None,
    weights: options.Weights = None,
    work_mpp: options.WorkMpp = None,
    work_gsd: options.WorkGsd = None,
    h5_flavor: Annotated[
        Literal["trident", "clam", "stamp"],
        typer.Option(metavar="LAYOUT", help="HDF5 layout: trident, clam or stamp."),
    ] = "trident",
    tile_px: Annotated[
        int,
        typer.Option(
            metavar="PIXELS", help="Side of a tile at the model's resolution.", min=32, max=4096
        ),
    ] = 224,
    min_tissue: Annotated[
        float,
        typer.Option(
            metavar="FRACTION", help="Least fraction of a tile that is tissue.", min=0, max=1
        ),
    ] = 0.25,
    mpp: options.Mpp = None,
    gsd: options.Gsd = None,
    scale: options.Scale = None,
    image: options.ImageNumber = None,
    allow_truncated: options.AllowTruncated = False,
    device: options.Device = "auto",
    precision: options.Precision = "float32",
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Write one feature vector per tile of a slide to HDF5.

    For tools that learn from slide labels. Tiles are edge to edge from the slide's origin; those
    without tissue are left out.
    """
    work_um = options.one_mpp(work_mpp, work_gsd, name="work-")
    slide_um = options.one_mpp(mpp, gsd)
    if encoder is None and (weights is not None or work_um is not None):
        raise typer.BadParameter("--weights, --work-mpp and --work-gsd require --encoder")
    if encoder is not None and (model is not None or not encoder.startswith("timm:")):
        raise typer.BadParameter("--encoder is timm:NAME and replaces --model")
    from atlas_wsi import embed as run
    from atlas_wsi import open_slide

    with open_slide(
        slide, mpp=slide_um, scale=scale, image=image, allow_truncated=allow_truncated
    ) as opened:
        path = out if out.suffix in {".h5", ".hdf5"} else out / f"{opened.name}.h5"
        if path.exists() and not overwrite:
            raise ResultExistsError(f"{path} exists.", hint="--overwrite replaces it.")
        with console.progress_of(opened.name, quiet=quiet) as report:
            tiles = run(
                opened,
                encoder or model,
                weights=weights,
                work_mpp=work_um or 0.5,
                tile_px=tile_px,
                min_tissue=min_tissue,
                device=device,
                precision=precision,
                progress=report,
            )
    tiles.write(path, flavor=h5_flavor, overwrite=overwrite)
    n_tiles, n_features = tiles.values.shape
    console.say(
        f"{path}: {n_tiles} tiles, {n_features} features each, by {tiles.encoder}", quiet=quiet
    )

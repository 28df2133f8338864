"""`atlas-wsi tissue`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from atlas_wsi.cli import console
from atlas_wsi.errors import OutputNotWritableError


def tissue(
    slide: Annotated[str, typer.Argument(help="Slide or scene.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="PNG file; white where there is tissue.")
    ],
    mpp: Annotated[
        float | None,
        typer.Option(help="Micrometers a pixel of the slide, if the file does not say.", min=0),
    ] = None,
    tissue: Annotated[
        Path | None,
        typer.Option(
            help="Tissue made elsewhere, to be seen as it is understood: GeoJSON polygons, a "
            "picture over the whole slide, or HDF5 tiles of CLAM, TRIDENT, WSInfer or STAMP."
        ),
    ] = None,
    mask_mpp: Annotated[
        float, typer.Option(help="Micrometers a pixel of the mask.", min=0.1)
    ] = 8.0,
    keep_fat: Annotated[bool, typer.Option("--keep-fat", help="Take pale fat as tissue.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Find the tissue of a slide, or the valid pixels of a scene, and write it as a picture."""
    from atlas_wsi.slides.open import open_slide
    from atlas_wsi.tissue.areas import read_tissue
    from atlas_wsi.tissue.mask import tissue_mask

    with open_slide(slide, mpp=mpp) as opened:
        if tissue:
            mask = read_tissue(tissue, opened)
        else:
            mask = tissue_mask(opened, mpp=mask_mpp, keep_fat=keep_fat)
        size = opened.require_mpp()
        pixels = mask.fraction * opened.shape[0] * opened.shape[1]
        unit, per_unit = ("m2", 1e12) if opened.is_georeferenced else ("mm2", 1e6)
        area = pixels * size[0] * size[1] / per_unit
    try:
        mask.write_png(out)
    except OSError as error:
        raise OutputNotWritableError(
            f"{out} cannot be written: {error.strerror or error}.", hint="Choose another --out."
        ) from error
    if as_json:
        console.print_json(
            {
                "out": str(out),
                "tissue_fraction": mask.fraction,
                "tissue_area": area,
                "area_unit": unit,
                "method": mask.method,
            }
        )
        return
    console.say(f"{out}: tissue {mask.fraction:.1%}, {area:.4g} {unit} ({mask.method})")

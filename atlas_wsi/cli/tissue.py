"""`atlas-wsi tissue`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from atlas_wsi.cli import console, options
from atlas_wsi.errors import OutputNotWritableError


def tissue(
    slide: options.SlidePath,
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="FILE", help="PNG file to write; white where there is tissue."
        ),
    ],
    mpp: options.Mpp = None,
    gsd: options.Gsd = None,
    image: options.ImageNumber = None,
    allow_truncated: options.AllowTruncated = False,
    tissue: options.Tissue = None,
    mask_mpp: Annotated[
        float | None,
        typer.Option(
            metavar="UM",
            help="Micrometers per pixel of the mask. Default: 8, of small slides down to 2.",
            min=0.1,
        ),
    ] = None,
    keep_fat: options.KeepFat = False,
    as_json: options.AsJson = False,
) -> None:
    """Write a tissue mask of a slide, or the valid pixels of a scene.

    With --tissue, writes the mask of another tool as it is understood.
    """
    from atlas_wsi import open_slide, read_tissue, tissue_mask

    with open_slide(
        slide, mpp=options.one_mpp(mpp, gsd), image=image, allow_truncated=allow_truncated
    ) as opened:
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

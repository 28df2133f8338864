"""Features of a slide's tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from atlas_wsi.errors import ModelError, SlideError, UnreadableSlideError
from atlas_wsi.inference.embeddings import TileEmbeddings
from atlas_wsi.inference.patches import read_patches
from atlas_wsi.inference.predict import choose_model
from atlas_wsi.inference.provenance import reporter
from atlas_wsi.models.model import Model
from atlas_wsi.models.stems.timm_network import PREFIX, TimmEncoder
from atlas_wsi.progress import CancelToken, Progress, silent
from atlas_wsi.slides.open import open_slide
from atlas_wsi.slides.slide import Slide
from atlas_wsi.streaming.device import Precision, choose_device, choose_dtype, prepare
from atlas_wsi.streaming.working_image import open_working_image
from atlas_wsi.tissue.mask import TissueMask, tissue_mask

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray


def embed(
    slide: Slide | str | os.PathLike[str],
    model: Model | str | os.PathLike[str] | None = None,
    *,
    weights: str | os.PathLike[str] | None = None,
    work_mpp: float = 0.5,
    tissue: TissueMask | None = None,
    tile_px: int = 224,
    min_tissue: float = 0.25,
    batch_size: int = 16,
    device: str = "auto",
    precision: Precision = "float32",
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> TileEmbeddings:
    """Compute one feature vector per tile of a slide, for tools that learn from slide labels.

    Tiles are edge to edge from the slide's origin; those with too little tissue are left out.

    Parameters
    ----------
    slide
        An open slide or a path.
    model
        A model, its name or file, or ``"timm:NAME"``; None takes the default for the kind of slide.
    weights
        Weights file of a timm model, or ``"none"`` for random weights; by default the pretrained
        weights.
    work_mpp
        Micrometers per pixel that a timm model sees.
    tissue
        Where the tissue is; by default `atlas_wsi.tissue_mask` of the slide.
    tile_px
        Side of a tile in pixels at the model's resolution.
    min_tissue
        Least fraction of a tile that is tissue.
    batch_size
        Tiles per batch.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"``, ...
    precision
        ``"float32"``, ``"bfloat16"``, or ``"auto"``: bfloat16 where the hardware supports it.
    progress
        Called with the number of tiles that are done.
    cancel
        Stops the work between two batches.

    Returns
    -------
    TileEmbeddings
        float32 `(tiles, channels)` with the tiles' level-0 positions, in row order.

    Raises
    ------
    SlideError
        If no tile has enough tissue.
    """
    opened = slide if isinstance(slide, Slide) else open_slide(slide)
    try:
        slide_mpp = opened.require_mpp()
        computer = choose_device(device)
        dtype = choose_dtype(computer, precision)
        encoder: Model | TimmEncoder
        if isinstance(model, str) and model.startswith(PREFIX):
            encoder = TimmEncoder(model, weights=weights, mpp=work_mpp)
            name, mpp = encoder.name, encoder.mpp
            encoder = encoder.to(device=computer, dtype=dtype)
        else:
            chosen, _ = choose_model(opened, model)
            if not isinstance(chosen, Model):
                raise ModelError(f"{chosen.card.name} is a tile classifier and has no features.")
            name, mpp = chosen.card.name, chosen.card.mpp
            encoder = prepare(chosen, device=computer, dtype=dtype)
        image = open_working_image(opened, mpp=mpp)
        mask = tissue if tissue is not None else tissue_mask(opened)
        covered = mask.coverage(image.grid.coarsen(tile_px))
        rows, cols = (n // tile_px for n in image.shape)
        tiles = np.argwhere(covered[:rows, :cols] >= min_tissue)
        if not len(tiles):
            raise SlideError(
                f"{opened.name} has no tile of {tile_px} px at {image.mpp[0]:g} um/px with "
                f"{min_tissue:.0%} tissue.",
                hint="Give a smaller --tile-px or --min-tissue.",
            )
        step = reporter(progress or silent, cancel or CancelToken(), {"embed": len(tiles)})
        positions: list[NDArray[np.int64]] = []
        values: list[NDArray[np.float32]] = []
        with torch.inference_mode():
            for part in read_patches(image, tiles, tile_px):
                block, pixels = part.enough()
                step("embed", len(part.indices) - len(block))
                for start in range(0, len(block), batch_size):
                    images = torch.from_numpy(pixels[start : start + batch_size]).to(computer)
                    values.append(encoder.features(images).cpu().numpy())
                    step("embed", len(images))
                positions.append(block)
        if not values:
            raise UnreadableSlideError(
                f"None of the {len(tiles)} tiles of {opened.name} can be read."
            )
    finally:
        if opened is not slide:
            opened.close()
    index = np.concatenate(positions)
    order = np.lexsort(index.T[::-1])
    level0_px = image.grid.step_px
    corners = index[order][:, ::-1] * tile_px * np.array([level0_px[1], level0_px[0]])
    return TileEmbeddings(
        values=np.concatenate(values)[order],
        coords=corners.round().astype(np.int64),
        tile_px=tile_px,
        tile_px_level0=round(tile_px * level0_px[1]),
        mpp=float(image.mpp[1]),
        slide_mpp=float(slide_mpp[1]),
        slide_shape=opened.shape,
        name=opened.name,
        encoder=name,
        sha256=encoder.sha256,
    )

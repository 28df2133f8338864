"""Features of a slide's tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from atlas_wsi.errors import SlideError
from atlas_wsi.grid import Box
from atlas_wsi.heatmap.hdf5 import Features
from atlas_wsi.models.model import Model
from atlas_wsi.progress import CancelToken, Progress, silent
from atlas_wsi.streaming.working_image import open_working_image

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from atlas_wsi.models.timm_stem import TimmEncoder
    from atlas_wsi.slides.slide import Slide
    from atlas_wsi.tissue.mask import TissueMask


def embed(
    slide: Slide,
    model: Model | TimmEncoder,
    *,
    tissue: TissueMask,
    tile_px: int = 224,
    min_tissue: float = 0.25,
    batch: int = 16,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Features:
    """Describe the tiles of a slide by the features that a model reads its classes from."""
    report, cancel = progress or silent, cancel or CancelToken()
    about = model.card if isinstance(model, Model) else model
    image = open_working_image(slide, mpp=about.mpp)
    covered = tissue.coverage(image.grid.coarsen(tile_px))
    rows, cols = (n // tile_px for n in image.shape)
    places = np.argwhere(covered[:rows, :cols] >= min_tissue)
    if not len(places):
        raise SlideError(
            f"{slide.name} has no tile of {tile_px} px at {image.mpp[0]:g} um/px with "
            f"{min_tissue:.0%} tissue.",
            hint="Give a smaller --tile-px or --min-tissue.",
        )
    found: list[NDArray[np.float32]] = []
    for start in range(0, len(places), batch):
        chosen = places[start : start + batch]
        cancel.raise_if_cancelled()
        tiles = [image.read(_box(at, tile_px)) for at in chosen]
        with torch.inference_mode():
            found.append(model.features(torch.from_numpy(np.stack(tiles))).numpy())
        report("embed", sum(map(len, found)), len(places))
    step = image.grid.step_px
    own = slide.require_mpp()
    corners = places[:, ::-1] * tile_px * np.array([step[1], step[0]])
    return Features(
        values=np.concatenate(found),
        coords=corners.round().astype(np.int64),
        tile_px=tile_px,
        tile_px_level0=round(tile_px * step[1]),
        mpp=float(image.mpp[1]),
        slide_mpp=float(own[1]),
        slide_shape=slide.shape,
        name=slide.name,
        encoder=about.name,
        sha256=model.sha256,
    )


def _box(at: NDArray[np.int64], tile_px: int) -> Box:
    row, col = (int(n) * tile_px for n in at)
    return Box(row=row, col=col, rows=tile_px, cols=tile_px)

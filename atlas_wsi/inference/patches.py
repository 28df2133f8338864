"""Tile classifiers of other projects on a slide, and the tiles that they see."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from atlas_wsi.inference.provenance import reporter
from atlas_wsi.models.stems.base import times
from atlas_wsi.streaming.plan import MacroTile, plan_macro_tiles
from atlas_wsi.streaming.prefetch import prefetch
from atlas_wsi.streaming.shard import read_threads

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from numpy.typing import NDArray

    from atlas_wsi.heatmap.heatmap import Heatmap
    from atlas_wsi.inference.provenance import RunningPrediction
    from atlas_wsi.models.tile_classifier import TileClassifier
    from atlas_wsi.progress import CancelToken, Progress
    from atlas_wsi.streaming.working_image import WorkingImage

_SIDE_PX = 1024  # side of the block that is read at once, about
_BATCH = 16


def predict_by_tile(
    run: RunningPrediction,
    model: TileClassifier,
    *,
    device: torch.device,
    batch_size: int | None,
    report: Progress,
    cancel: CancelToken,
) -> Heatmap:
    """Classify the patches of a slide that have tissue; every patch is a cell of the heatmap.

    Patches are edge to edge from the slide's origin; those at its far borders are padded with
    background.
    """
    indices = np.argwhere(run.wanted_cells())
    batch = batch_size or _BATCH
    probabilities = run.heatmap.probabilities.copy()
    scores: list[float] = []
    if len(indices):
        step = reporter(report, cancel, {"classify": len(indices)})
        model.net.to(device)
        for block, patches in read_patches(run.image, indices, model.patch_px):
            for start in range(0, len(block), batch):
                rows, cols = block[start : start + batch].T
                values = model.probabilities(patches[start : start + batch], device=device)
                probabilities[:, rows, cols] = values.T
                step("classify", len(rows))
        scores = np.nanmean(probabilities, axis=(1, 2)).tolist()
    run.parameters |= {
        "by_tile": True,
        "device": str(device),
        "batch": batch,
        "patches": len(indices),
    }
    return run.finish("classify", probabilities, scores)


def read_patches(
    image: WorkingImage, indices: NDArray[np.int64], side: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
    """Yield indices of neighboring patches, and their pixels, read ahead of the network."""

    def read(tile: MacroTile) -> NDArray[np.uint8]:
        area = tile.area
        pixels = image.read(times(area, side))
        blocks = pixels.reshape(area.rows, side, area.cols, side, 3).swapaxes(1, 2)
        row, col = (indices[tile.windows] - (area.row, area.col)).T
        return blocks[row, col]

    tiles = plan_macro_tiles(
        indices,
        image_shape=image.shape,
        window_px=side,
        reach=lambda box, shape: box.clip(shape),
        side=max(1, _SIDE_PX // side),
    )
    threads = read_threads()
    for tile, patches in prefetch(read, tiles, threads=threads, ahead=threads + 1):
        yield indices[tile.windows], patches

"""Tile classifiers of other projects on a slide, and the tiles that they see."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from atlas_wsi.inference.provenance import reporter
from atlas_wsi.models.stems.base import times
from atlas_wsi.slides.tile_reader import OBSERVED, UNREADABLE
from atlas_wsi.streaming.plan import MacroTile, plan_macro_tiles
from atlas_wsi.streaming.prefetch import prefetch

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
        missing, unreadable = (np.zeros(run.heatmap.grid.shape, np.float32) for _ in range(2))
        for part in read_patches(run.image, indices, model.patch_px):
            missing[tuple(part.indices.T)] = 1 - part.observed
            unreadable[tuple(part.indices.T)] = part.unreadable
            block, patches = part.enough()
            step("classify", len(part.indices) - len(block))
            for start in range(0, len(block), batch):
                rows, cols = block[start : start + batch].T
                values = model.probabilities(patches[start : start + batch], device=device)
                probabilities[:, rows, cols] = values.T
                step("classify", len(rows))
        run.leave_out(missing, unreadable)
        if not np.isnan(probabilities).all():
            scores = np.nanmean(probabilities, axis=(1, 2)).tolist()
    run.parameters |= {
        "by_tile": True,
        "device": str(device),
        "batch": batch,
        "patches": len(indices),
    }
    return run.finish("classify", probabilities, scores)


class Patches(NamedTuple):
    """Neighboring patches of a slide."""

    indices: NDArray[np.int64]
    """`(n, 2)`: row and column of each patch."""
    pixels: NDArray[np.uint8]
    """`(n, side, side, 3)`."""
    observed: NDArray[np.float32]
    """`(n,)`: which part of each patch inside the slide was observed."""
    unreadable: NDArray[np.float32]
    """`(n,)`: which part could not be read."""

    def enough(self) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """Return indices and pixels of the patches of which at least half was observed."""
        is_enough = self.observed >= 0.5
        return self.indices[is_enough], self.pixels[is_enough]


def read_patches(image: WorkingImage, indices: NDArray[np.int64], side: int) -> Iterator[Patches]:
    """Yield neighboring patches, read ahead of the network."""

    def read(tile: MacroTile) -> Patches:
        area = tile.area
        pixels, state = image.read_masked(times(area, side))
        blocks = pixels.reshape(area.rows, side, area.cols, side, 3).swapaxes(1, 2)
        places = indices[tile.windows] - (area.row, area.col)
        row, col = places.T
        if state is None:
            whole = np.ones(len(row), np.float32)
            return Patches(indices[tile.windows], blocks[row, col], whole, 0 * whole)
        known = state.reshape(area.rows, side, area.cols, side)
        inside = np.minimum(np.array(image.shape) - indices[tile.windows] * side, side).prod(axis=1)
        observed, unreadable = (
            ((known == n).sum(axis=(1, 3))[row, col] / inside).astype(np.float32)
            for n in (OBSERVED, UNREADABLE)
        )
        return Patches(indices[tile.windows], blocks[row, col], observed, unreadable)

    tiles = plan_macro_tiles(
        indices,
        image_shape=image.shape,
        window_px=side,
        reach=lambda box, shape: box.clip(shape),
        side=max(1, _SIDE_PX // side),
    )
    for _, patches in prefetch(read, tiles):
        yield patches

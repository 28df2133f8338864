"""A heatmap as a list of tiles: tables and HDF5 that tools for slide labels read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from atlas_wsi import files
from atlas_wsi.errors import ResultError
from atlas_wsi.inference.embeddings import TileEmbeddings

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from atlas_wsi.heatmap.heatmap import Heatmap
    from atlas_wsi.inference.embeddings import Flavor


def predicted_tiles(heatmap: Heatmap) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """List the cells with a prediction, row by row, and their probabilities `(tiles, classes)`.

    Boxes are `(tiles, 4)`: level-0 `x0, y0, x1, y1`; neighbors share edges.
    """
    rows, cols = np.nonzero(heatmap.argmax() >= 0)
    y, x = (np.rint(edges).astype(np.int64) for edges in heatmap.cell_edges)
    boxes = np.column_stack([x[cols], y[rows], x[cols + 1], y[rows + 1]])
    inside = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    probabilities = heatmap.probabilities[:, rows, cols].T.astype(np.float32)
    return boxes[inside], probabilities[inside]


def write_csv(heatmap: Heatmap, path: Path) -> tuple[str, ...]:
    """Write one row per tile, with the columns of WSInfer."""
    boxes, probabilities = predicted_tiles(heatmap)
    x0, y0, x1, y1 = boxes.T
    places = np.column_stack([x0, y0, x1 - x0, y1 - y0]).tolist()
    rows = (
        [*place, *(f"{p:.6g}" for p in values)]
        for place, values in zip(places, probabilities.tolist(), strict=True)
    )
    names = [f"prob_{name}" for name in heatmap.classes]
    files.write_csv(path, ["minx", "miny", "width", "height", *names], rows)
    return ()


def write_hdf5(heatmap: Heatmap, path: Path, flavor: Flavor) -> tuple[str, ...]:
    """Write the coordinates of the tiles, with their class probabilities as features."""
    step_y, step_x = heatmap.grid.step_px
    if abs(step_y - step_x) > 0.01 * step_x:
        raise ResultError(
            f"The cells of {heatmap.slide.name} have {step_x:.1f} x {step_y:.1f} pixels; the "
            "HDF5 layouts have square tiles only.",
            hint="Use --to wsinfer-csv.",
        )
    boxes, probabilities = predicted_tiles(heatmap)
    if not len(boxes):
        raise ResultError(f"{heatmap.slide.name} has no cell with a prediction.")
    mpp = (heatmap.run.mpp_used or heatmap.slide.mpp)[1]
    TileEmbeddings(
        values=probabilities,
        coords=boxes[:, :2],
        tile_px=round(step_x * heatmap.slide.mpp[1] / mpp),
        tile_px_level0=round(step_x),
        mpp=mpp,
        slide_mpp=heatmap.slide.mpp[1],
        slide_shape=heatmap.slide.shape,
        name=heatmap.slide.name,
        encoder=f"{heatmap.run.model.name}-probabilities",
        sha256=heatmap.run.model.sha256,
        notes={"features": "class probabilities", "classes": "\n".join(heatmap.classes)},
    ).write(path, flavor=flavor, overwrite=True)
    n = len(heatmap.classes)
    meaning = f"{heatmap.slide.name}: the features are the {n} class probabilities of each tile"
    return (f"{meaning}; `atlas-wsi embed` writes those of the encoder.",)

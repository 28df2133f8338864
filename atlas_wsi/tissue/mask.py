"""Where a slide has tissue, and a scene has observations."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas_wsi.grid import Grid
from atlas_wsi.slides.tile_reader import OBSERVED, UNREADABLE
from atlas_wsi.tissue.segment import segment_tissue

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import shapely
    from numpy.typing import NDArray

    from atlas_wsi.slides.slide import Slide

MAX_CELLS = 4096
_FINE_CELLS = 1024
MIN_CELL_TISSUE = 0.2
"""Least fraction of tissue of a cell that is shown; cells with less are left empty."""
_ROI_CELLS = 64
"""Cells along the longer side of an area of interest, at least."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TissueMask:
    """Tissue of a slide, or observed ground of a scene, on a coarse grid."""

    mask: NDArray[np.bool_]
    """bool `(rows, cols)`: True where there is tissue."""
    grid: Grid
    """Where the mask's cells lie on level 0."""
    method: str
    """How the mask was found, such as ``"brightfield"``, ``"fluorescence"``, ``"valid"``."""
    unreadable: float = 0.0
    """Share of the slide that could not be read when tissue was sought, 0 to 1."""
    is_drawn: bool = False
    """Whether the area was chosen by the user: then every window it touches is computed."""

    def __post_init__(self) -> None:
        if self.mask.shape != self.grid.shape or self.mask.dtype != np.bool_:
            raise ValueError(
                f"The mask is {self.mask.dtype} {self.mask.shape}, expected bool {self.grid.shape}."
            )

    @property
    def fraction(self) -> float:
        """Share of cells that are tissue, 0 to 1."""
        return float(self.mask.mean())

    def coverage(self, grid: Grid) -> NDArray[np.float32]:
        """Tell how much of each cell of another grid is tissue.

        Parameters
        ----------
        grid
            Any cells on the same slide, larger or smaller than the mask's.

        Returns
        -------
        NDArray[np.float32]
            `grid.shape`, the share of each cell's area that is tissue, 0 to 1. What lies outside
            the mask's grid is no tissue.
        """
        # The mask is constant in each of its cells, so its double integral is bilinear between
        # their corners: interpolating the summed-area table is exact.
        filled = [np.flatnonzero(self.mask.any(axis=1 - axis)) for axis in (0, 1)]
        if not filled[0].size:
            return np.zeros(grid.shape, np.float32)
        part_of = tuple(slice(int(at[0]), int(at[-1]) + 1) for at in filled)
        mask = self.mask[part_of]
        table = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
        table[1:, 1:] = mask
        np.cumsum(table, axis=0, out=table)
        np.cumsum(table, axis=1, out=table)
        cell_area = 1.0
        for axis in (0, 1):
            step = grid.step_px[axis] / self.grid.step_px[axis]
            offset = (grid.origin_px[axis] - self.grid.origin_px[axis]) / self.grid.step_px[axis]
            offset -= filled[axis][0]
            edges = np.clip(offset + step * np.arange(grid.shape[axis] + 1), 0, mask.shape[axis])
            below = np.minimum(edges.astype(np.intp), mask.shape[axis] - 1)
            part = (edges - below).reshape((-1, 1) if axis == 0 else (1, -1))
            table = (1 - part) * table.take(below, axis) + part * table.take(below + 1, axis)
            table = np.diff(table, axis=axis)
            cell_area *= step
        return np.clip(table / cell_area, 0, 1).astype(np.float32)

    def without(self, cells: NDArray[np.bool_], grid: Grid) -> TissueMask:
        """Leave cells of another grid out.

        Parameters
        ----------
        cells
            bool, of the shape of `grid`: True where there is nothing that counts.
        grid
            Where these cells lie on level 0.

        Returns
        -------
        TissueMask
            The mask without its cells whose center lies in one of `cells`.
        """
        places = []
        for axis in (0, 1):
            center = self.grid.origin_px[axis] + self.grid.step_px[axis] * (
                np.arange(self.mask.shape[axis]) + 0.5
            )
            at = np.floor((center - grid.origin_px[axis]) / grid.step_px[axis]).astype(np.intp)
            places.append(np.where((at >= 0) & (at < grid.shape[axis]), at, grid.shape[axis]))
        beyond = np.pad(cells, ((0, 1), (0, 1)))
        return replace(self, mask=self.mask & ~beyond[np.ix_(*places)])

    def within(self, areas: Sequence[NDArray[Any] | shapely.Polygon]) -> TissueMask:
        """Cut the mask to areas of interest.

        Parameters
        ----------
        areas
            Each an array `(n, 2)` of the level-0 row and column of its corners, or a polygon in
            level-0 `(x, y)`, which may have holes. Cells whose center lies in an area are kept;
            areas may lie apart.

        Returns
        -------
        TissueMask
            Tissue inside the areas, with cells small enough for the smallest of them.

        Raises
        ------
        ValueError
            If an area has less than three corners or a corner that is no number.
        """
        from affine import Affine
        from rasterio.features import rasterize

        polygons = [_polygon(area) for area in areas]
        finer = self._fine_enough(polygons)
        mask = np.kron(self.mask, np.ones((finer, finer), bool)) if finer > 1 else self.mask
        step = (self.grid.step_px[0] / finer, self.grid.step_px[1] / finer)
        grid = replace(self.grid, shape=mask.shape, step_px=step)
        to_cells = Affine(step[1], 0, grid.origin_px[1], 0, step[0], grid.origin_px[0])
        inside = np.zeros(mask.shape, bool)
        if polygons:
            inside = rasterize(
                polygons,
                out_shape=mask.shape,
                transform=to_cells,
                dtype=np.uint8,
            ).astype(bool)
        return replace(self, mask=mask & inside, grid=grid, is_drawn=True)

    def _fine_enough(self, polygons: Sequence[shapely.Polygon]) -> int:
        """Return the number of subcells per axis of a cell, so that small areas keep their form."""
        room = int(MAX_CELLS // max(self.mask.shape))
        finest = 1
        for polygon in polygons:
            x0, y0, x1, y1 = polygon.bounds
            sides = (y1 - y0) / self.grid.step_px[0], (x1 - x0) / self.grid.step_px[1]
            finest = max(finest, math.ceil(_ROI_CELLS / max(*map(abs, sides), 1e-3)))
        return max(1, min(room, finest))

    def write_png(self, path: str | os.PathLike[str]) -> Path:
        """Write the mask as a gray picture, white where there is tissue.

        Parameters
        ----------
        path
            The file to write.

        Returns
        -------
        Path
            The file written.
        """
        from PIL import Image

        path = Path(path)
        Image.fromarray(self.mask.astype(np.uint8) * 255).save(path, format="PNG")
        return path


def _polygon(area: NDArray[Any] | shapely.Polygon) -> shapely.Polygon:
    import shapely

    if isinstance(area, shapely.Polygon):
        return area
    corners = np.asarray(area, dtype=np.float64)
    if corners.ndim != 2 or corners.shape[1] != 2 or len(corners) < 3:
        raise ValueError(f"an area is an (n, 2) array of corners, not {corners.shape}")
    if not np.isfinite(corners).all():
        raise ValueError("an area has a corner that is not finite")
    return shapely.Polygon(corners[:, ::-1])


def tissue_mask(slide: Slide, *, mpp: float | None = None, keep_fat: bool = False) -> TissueMask:
    """Find the tissue of a slide, or the observed ground of a scene.

    Parameters
    ----------
    slide
        The slide; its resolution must be known.
    mpp
        Approximate micrometers per cell of the mask; coarser if the slide's pixels are, or if the mask would be
        longer than 4096 cells. By default 8, of slides below 8 mm as fine as 1024 cells allow, down to 2: the
        borders of small pieces count. Georeferenced scenes: as fine as 4096 cells allow.
    keep_fat
        Whether the empty-looking inside of fat cells counts as tissue.

    Returns
    -------
    TissueMask
        The mask; without a True cell if the slide is all glass.
    """
    slide_mpp = slide.require_mpp()
    finest = max(m * max(1.0, n / MAX_CELLS) for m, n in zip(slide_mpp, slide.shape, strict=True))
    if mpp is None:
        length = max(m * n for m, n in zip(slide_mpp, slide.shape, strict=True))
        mpp = min(8.0, max(2.0, length / _FINE_CELLS))
    cell_um = finest if slide.is_georeferenced else max(mpp, finest)
    # As many cells as fit the slide exactly, so that none reaches over its border.
    rows, cols = (
        max(1, round(n * m / cell_um)) for n, m in zip(slide.shape, slide_mpp, strict=True)
    )
    grid = Grid(shape=(rows, cols), step_px=(slide.shape[0] / rows, slide.shape[1] / cols))
    cell = (grid.step_px[0] * slide_mpp[0], grid.step_px[1] * slide_mpp[1])
    if slide.is_georeferenced:
        valid = slide.read_valid(0, 0, rows, cols, mpp=cell)
        lost = float((_found_unreadable(slide, grid) & ~valid).mean())
        return TissueMask(mask=valid, grid=grid, method="valid", unreadable=lost)
    pixels, state = slide.read_masked(0, 0, rows, cols, mpp=cell)
    valid = np.ones((rows, cols), bool) if state is None else state == OBSERVED
    mask, method = segment_tissue(pixels, cell_um=cell_um, valid=valid, keep_fat=keep_fat)
    lost = 0.0 if state is None else float((state == UNREADABLE).mean())
    return TissueMask(mask=mask, grid=grid, method=method, unreadable=lost)


def _found_unreadable(slide: Slide, grid: Grid) -> NDArray[np.bool_]:
    """Return the cells in blocks that were found unreadable before."""
    lost = np.zeros(grid.shape, bool)
    for tile in slide.unreadable:
        scale = slide.meta.levels[tile.level].downsample
        (row, col), (row_end, col_end) = (
            (round(y * scale[0] / grid.step_px[0]), round(x * scale[1] / grid.step_px[1]))
            for y, x in ((tile.box.row, tile.box.col), (tile.box.row_end, tile.box.col_end))
        )
        lost[row:row_end, col:col_end] = True
    return lost

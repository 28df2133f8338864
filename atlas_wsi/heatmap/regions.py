"""Polygons from a heatmap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from shapely import Geometry, MultiPolygon, Polygon

    from atlas_wsi.grid import Grid
    from atlas_wsi.heatmap.heatmap import Heatmap

MIN_CELLS = 4
MAX_REGIONS = 10_000
# Compared with the root of the area of a corner, in cells: steps of one by two cells go.
TOLERANCE_CELLS = 1.05


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Region:
    """A connected part of the slide where one class is the most probable one."""

    class_index: int
    """Index into the heatmap's classes."""
    polygon: Polygon | MultiPolygon
    """Valid, inside the slide, level-0 pixels `(x, y)`."""
    n_cells: int
    """Cells it was made from."""
    probabilities: tuple[float, ...]
    """Mean probability of each class over its cells."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Regions:
    """The regions of a heatmap."""

    regions: tuple[Region, ...]
    """Largest first."""
    n_left_out: int
    """Regions beyond the allowed number: the smallest ones."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """A warning for files that list the regions, if any were left out."""
        text = f"The {len(self.regions)} largest regions are written; {self.n_left_out} smaller"
        return (f"{text} ones are in the heatmap only.",) if self.n_left_out else ()


def find_regions(
    heatmap: Heatmap,
    *,
    min_cells: int = MIN_CELLS,
    max_regions: int = MAX_REGIONS,
    smooth: bool = True,
) -> Regions:
    """Outline where each class is the most probable one.

    Parameters
    ----------
    heatmap
        The result.
    min_cells
        A smaller patch goes to the largest patch it touches, or vanishes if it touches none.
    max_regions
        At most so many regions are kept, the largest ones.
    smooth
        Whether corners of single cells are smoothed away; else outlines follow the cells.

    Returns
    -------
    Regions
        Polygons that neither overlap nor leave gaps between neighbors. A class's area changes by
        `smooth` and `min_cells` only.
    """
    from rasterio.features import sieve
    from skimage.measure import label

    classes = heatmap.argmax().astype(np.int32) + 1
    if 1 < min_cells < classes.size:
        classes = sieve(classes, size=min_cells, mask=classes > 0, connectivity=4)
    ids, n_ids = label(  # type: ignore[no-untyped-call]
        classes, background=0, connectivity=1, return_num=True
    )
    sizes = np.bincount(ids.ravel(), minlength=n_ids + 1)
    sizes[0] = 0
    keep = sizes >= min_cells
    keep[0] = False
    order = np.flatnonzero(keep)[np.argsort(-sizes[keep], kind="stable")]
    chosen = order[:max_regions]
    if not len(chosen):
        return Regions(regions=(), n_left_out=0)

    first = np.zeros(n_ids + 1, np.intp)
    first[ids.ravel()[::-1]] = np.arange(ids.size)[::-1]
    class_of = classes.ravel()[first] - 1
    known = ids.ravel() > 0
    means = [
        np.bincount(
            ids.ravel()[known], channel.ravel()[known].astype(np.float64), minlength=n_ids + 1
        )[chosen]
        / sizes[chosen]
        for channel in heatmap.probabilities
    ]
    polygons = _outline(ids, chosen, heatmap.grid, heatmap.slide.shape, smooth=smooth)
    regions = tuple(
        Region(
            class_index=int(class_of[number]),
            polygon=polygon,
            n_cells=int(sizes[number]),
            probabilities=tuple(float(m[i]) for m in means),
        )
        for i, (number, polygon) in enumerate(zip(chosen, polygons, strict=True))
        if not polygon.is_empty
    )
    return Regions(regions=regions, n_left_out=len(order) - len(chosen))


def _outline(
    ids: NDArray[np.int32],
    chosen: NDArray[np.intp],
    grid: Grid,
    slide_shape: tuple[int, int],
    *,
    smooth: bool,
) -> Sequence[Polygon | MultiPolygon]:
    import shapely
    from rasterio.features import shapes

    rank = np.full(int(ids.max()) + 1, -1, np.int32)
    rank[chosen] = np.arange(len(chosen))
    ranks = rank[ids]
    outlines: list[Polygon | MultiPolygon] = [shapely.Polygon()] * len(chosen)
    for geometry, value in shapes(ranks, mask=ranks >= 0, connectivity=4):
        outlines[int(value)] = shapely.geometry.shape(geometry)
    # A ring that touches itself at a corner becomes a hole or a second part.
    cells = shapely.make_valid(np.array(outlines, object))
    if smooth:
        # Neighbors must share every vertex, so that both are smoothed alike.
        cells = shapely.transform(shapely.segmentize(cells, 1.0), np.round)
        cells = shapely.coverage_simplify(cells, TOLERANCE_CELLS)
    pixels = shapely.transform(
        cells, lambda xy: xy * grid.step_px[::-1] + np.asarray(grid.origin_px[::-1])
    )
    on_slide = shapely.box(0, 0, slide_shape[1], slide_shape[0])
    inside = shapely.intersection(pixels, on_slide, grid_size=0.01)
    return [_only_polygons(geometry) for geometry in shapely.make_valid(inside)]


def _only_polygons(geometry: Geometry) -> Polygon | MultiPolygon:
    import shapely

    flat = shapely.get_parts(shapely.get_parts(geometry))
    parts = [p for p in flat if p.geom_type == "Polygon" and p.area > 0]
    if len(parts) == 1:
        return shapely.orient_polygons(parts[0])
    return shapely.orient_polygons(shapely.MultiPolygon(parts))

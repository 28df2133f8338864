"""Polygons of GeoJSON and of GIS files, brought to level 0 of a slide."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas_wsi.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import shapely
    from numpy.typing import NDArray

    from atlas_wsi.slides.slide import Slide

LON_LAT = "EPSG:4326"
_MARGIN = 0.1  # of the scene that is looked at around it
_STEPS = 64  # points on a side of it: between two, curved systems bend by far less than a pixel
_MOST_POINTS = 10**6  # that are put in between


def shapes_of(data: Any, path: Path) -> list[shapely.Geometry]:
    """Read the geometries of GeoJSON."""
    import shapely

    try:
        return [shapely.from_geojson(json.dumps(one)) for one in _geometries(data)]
    except RecursionError as error:
        raise DatasetError(f"{path} is not GeoJSON: it is nested too deeply.") from error
    except (shapely.errors.ShapelyError, ValueError, TypeError) as error:
        raise DatasetError(f"{path} has an invalid geometry: {error}.") from error


def crs_of(data: Any, slide: Slide, path: Path) -> str | None:
    """Tell the coordinate reference system of GeoJSON."""
    if not slide.is_georeferenced:
        return None
    named = data.get("crs") if isinstance(data, dict) else None
    if not named:
        return LON_LAT
    name = named.get("properties", {}).get("name") if isinstance(named, dict) else None
    if not isinstance(name, str):
        raise DatasetError(f"{path} has a member crs that names no coordinate reference system.")
    return name


def to_level0(
    shapes: Sequence[shapely.Geometry] | NDArray[np.object_],
    crs: str | None,
    slide: Slide,
    path: Path,
) -> tuple[list[shapely.Polygon], NDArray[np.int64]]:
    """Bring shapes to level-0 pixels `(x, y)` of a slide; return the polygons that touch it.

    The second array is the index in `shapes` of each. `crs` matters to georeferenced scenes only.
    """
    import shapely

    try:
        valid = shapely.make_valid(np.array(list(shapes), dtype=object))
    except (shapely.errors.ShapelyError, ValueError) as error:
        raise DatasetError(f"{path} has an invalid geometry: {error}.") from error
    if not len(_polygons(valid)[0]):
        raise DatasetError(f"{path} has no polygon.", hint="Draw areas, not lines or points.")
    moved = _to_scene(valid, crs, slide, path) if slide.is_georeferenced else valid
    found, of = _polygons(moved)
    rows, cols = slide.shape
    inside = shapely.intersects(found, shapely.box(0, 0, cols, rows))
    if not inside.any():
        x0, y0, x1, y1 = shapely.total_bounds(valid)
        where = f"in {_short(crs)}" if slide.is_georeferenced else "in level-0 pixels"
        raise DatasetError(
            f"No polygon of {path} touches {slide.name}: they are at x {x0:.6g} to {x1:.6g}, "
            f"y {y0:.6g} to {y1:.6g} {where}; the slide has {cols} x {rows} pixels.",
            hint="Coordinates are level-0 pixels (x, y), or those of the file's crs for scenes.",
        )
    return found[inside].tolist(), of[inside]


def _geometries(data: Any) -> list[Any]:
    """Return the geometries of whatever a GeoJSON file may hold."""
    if isinstance(data, list):
        return [geometry for one in data for geometry in _geometries(one)]
    if not isinstance(data, dict):
        return []
    if isinstance(data.get("features"), list):
        return _geometries(data["features"])
    if data.get("type") == "Feature":
        return _geometries(data.get("geometry"))
    return [data] if "coordinates" in data or "geometries" in data else []


def _polygons(shapes: NDArray[np.object_]) -> tuple[NDArray[np.object_], NDArray[np.int64]]:
    """Take collections apart, and return the polygons with the place of each."""
    import shapely

    parts, of = shapely.get_parts(shapes, return_index=True)
    while (shapely.get_type_id(parts) > shapely.GeometryType.POLYGON).any():  # they may be nested
        parts, again = shapely.get_parts(parts, return_index=True)
        of = of[again]
    is_area = (shapely.get_type_id(parts) == shapely.GeometryType.POLYGON) & ~shapely.is_empty(
        parts
    )
    return parts[is_area], of[is_area]


def _to_scene(
    shapes: NDArray[np.object_], crs: str | None, slide: Slide, path: Path
) -> NDArray[np.object_]:
    """Bring shapes of a coordinate reference system to level-0 pixels; what is far off is emptied."""
    import shapely
    from affine import Affine
    from rasterio.crs import CRS
    from rasterio.warp import transform

    if crs is None:
        raise DatasetError(
            f"{path} has no coordinate reference system, so its position in {slide.name} is unknown.",
            hint="Assign one: ogr2ogr -a_srs or gdal_edit.py -a_srs.",
        )
    assert slide.transform is not None
    to_scene, to_pixels = slide.transform, tuple(~Affine(*slide.transform))

    def move(xy: NDArray[np.float64], source: CRS, target: CRS) -> NDArray[np.float64]:
        if source == target or not len(xy):
            return xy
        return np.stack(transform(source, target, xy[:, 0], xy[:, 1])[:2], axis=1)

    try:
        theirs, ours = CRS.from_user_input(crs), CRS.from_user_input(slide.crs)
        frame, length = _neighborhood(
            slide.shape, lambda xy: move(apply_affine(to_scene, xy), ours, theirs)
        )
        near = shapely.intersection(shapes, frame)
        if theirs != ours:  # straight edges of one system are curves in another
            longest = float(np.nansum(shapely.length(near))) / _MOST_POINTS
            near = shapely.segmentize(near, max(length, longest))
        found = shapely.transform(
            near, lambda xy: apply_affine(to_pixels, move(np.asarray(xy), theirs, ours))
        )
    except Exception as error:  # GDAL has errors of its own for systems that do not meet
        raise DatasetError(
            f"{path} cannot be reprojected to the coordinates of {slide.name}: {error}."
        ) from error
    here = np.isfinite(shapely.bounds(found)).all(axis=1)
    polygons: NDArray[np.object_] = shapely.make_valid(np.where(here, found, shapely.Polygon()))
    return polygons


def _neighborhood(
    shape: tuple[int, int], move: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> tuple[shapely.Polygon, float]:
    """Return a box of other coordinates that holds a scene, and how far its points are apart there."""
    import shapely

    rows, cols = shape
    steps = np.linspace(-_MARGIN, 1 + _MARGIN, _STEPS + 1)
    points = move(np.stack(np.meshgrid(steps * cols, steps * rows), axis=-1).reshape(-1, 2))
    points[~np.isfinite(points).all(axis=1)] = np.nan
    if np.isnan(points).all():
        raise ValueError("the two coordinate reference systems do not overlap there")
    grid = points.reshape(len(steps), len(steps), 2)
    ways = (np.hypot(*np.moveaxis(np.diff(grid, axis=axis), -1, 0)) for axis in (0, 1))
    box = shapely.box(*np.nanmin(points, axis=0), *np.nanmax(points, axis=0))
    return box, float(min(np.nanmedian(way) for way in ways))


def apply_affine(transform: Sequence[float], xy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Move points `(n, 2)` by an affine (a, b, c, d, e, f), as of `Slide.transform`."""
    a, b, c, d, e, f = transform[:6]
    x, y = xy[:, 0], xy[:, 1]
    return np.column_stack([a * x + b * y + c, d * x + e * y + f])


def _short(crs: str | None) -> str:
    return crs if crs is not None and len(crs) < 40 else "the file's coordinates"

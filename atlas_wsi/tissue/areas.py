"""Areas that a person or another program drew: GeoJSON polygons, tiles and mask pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas_wsi.bounded import BoundedFile
from atlas_wsi.errors import DatasetError
from atlas_wsi.grid import Grid
from atlas_wsi.tissue.mask import TissueMask
from atlas_wsi.tissue.tiles import SUFFIXES as TILES
from atlas_wsi.tissue.tiles import tiles_to_mask

if TYPE_CHECKING:
    import os

    import shapely

    from atlas_wsi.slides.slide import Slide

MAX_FILE_BYTES = 200 * 2**20
MAX_MASK_PIXELS = 64 * 10**6
_LON_LAT = "EPSG:4326"


def read_areas(path: str | os.PathLike[str], slide: Slide) -> list[shapely.Polygon]:
    """Read the polygons of a GeoJSON file.

    Parameters
    ----------
    path
        A geometry, a feature, a collection or a list of features, such as QuPath writes. For
        slides the coordinates are level-0 pixels `(x, y)`; for georeferenced scenes those of the
        file's ``crs`` member, or longitude and latitude without one. A ``crs`` is no use on a
        slide and not looked at: TRIDENT writes one.
    slide
        The slide that the polygons lie on.

    Returns
    -------
    list of shapely.Polygon
        In level-0 pixels `(x, y)`, holes kept; lines and points are left out.

    Raises
    ------
    DatasetError
        If the file cannot be read, holds no polygon, or none touches the slide.
    """
    path = Path(path)
    return touching(polygons_of(_read_json(path), slide, path), slide, path)


def polygons_of(data: Any, slide: Slide, path: Path) -> list[shapely.Polygon]:
    """Bring the polygons of GeoJSON to level 0 of a slide.

    Parameters
    ----------
    data
        See `read_areas`; the ``crs`` may also be WKT.
    slide
        The slide that the polygons lie on, or beside.
    path
        Where they come from, for messages.

    Returns
    -------
    list of shapely.Polygon
        In level-0 pixels `(x, y)`.

    Raises
    ------
    DatasetError
        If a geometry is none, or there is no polygon.
    """
    import shapely

    try:
        geometries = _geometries(data)
    except RecursionError as error:
        raise DatasetError(f"{path} is not GeoJSON: it is nested too deeply.") from error
    found = []
    for geometry in geometries:
        try:
            shape = shapely.from_geojson(json.dumps(_to_slide_crs(geometry, data, slide)))
            valid = shapely.make_valid(shape)
        except (shapely.errors.ShapelyError, ValueError, TypeError) as error:
            raise DatasetError(f"{path} holds a geometry that is none: {error}.") from error
        parts = shapely.get_parts(valid)
        found += [part for part in parts if part.geom_type == "Polygon" and not part.is_empty]
        for part in parts:  # make_valid may nest polygons in a collection
            if part.geom_type == "MultiPolygon":
                found += list(part.geoms)
    if not found:
        raise DatasetError(f"{path} holds no polygon.", hint="Draw areas, not lines or points.")
    return found


def touching(found: list[shapely.Polygon], slide: Slide, path: Path) -> list[shapely.Polygon]:
    """Return the polygons that touch a slide.

    Parameters
    ----------
    found
        In level-0 pixels `(x, y)`.
    slide
        The slide.
    path
        Where they come from, for messages.

    Returns
    -------
    list of shapely.Polygon
        Some of them.

    Raises
    ------
    DatasetError
        If none touches it.
    """
    import shapely

    rows, cols = slide.shape
    frame = shapely.box(0, 0, cols, rows)
    inside = [polygon for polygon in found if polygon.intersects(frame)]
    if not inside:
        x0, y0, x1, y1 = shapely.total_bounds(found)
        raise DatasetError(
            f"No polygon of {path} touches {slide.name}: they lie at x {x0:.0f} to {x1:.0f}, "
            f"y {y0:.0f} to {y1:.0f}, the slide has {cols} x {rows} pixels.",
            hint="Coordinates are level-0 pixels (x, y), or those of the file's crs for scenes.",
        )
    return inside


def read_tissue(path: str | os.PathLike[str], slide: Slide) -> TissueMask:
    """Read a tissue mask that was made elsewhere.

    Parameters
    ----------
    path
        GeoJSON polygons (see `read_areas`); HDF5 tiles of CLAM, TRIDENT, WSInfer or STAMP, whose
        union it is; or a picture over the whole slide, of any resolution, that is black where
        there is no tissue.
    slide
        The slide.

    Returns
    -------
    TissueMask
        Every window that it touches is computed.

    Raises
    ------
    DatasetError
        If the file cannot be read or has not the slide's form.
    """
    path = Path(path)
    if path.suffix.lower() in (".json", ".geojson", *TILES):
        own = slide.require_mpp()
        step = tuple(max(1.0, 4.0 / m, n / 4096) for m, n in zip(own, slide.shape, strict=True))
        grid = Grid.over(slide.shape, (step[0], step[1]))
        if path.suffix.lower() in TILES:
            return tiles_to_mask(path, slide, grid)
        whole = TissueMask(mask=np.ones(grid.shape, bool), grid=grid, method=f"file {path.name}")
        return whole.within(read_areas(path, slide))
    mask = _read_picture(path)
    rows, cols = slide.shape
    stretch = (mask.shape[0] / mask.shape[1]) / (rows / cols)
    if abs(stretch - 1) > 0.02 + 1 / min(mask.shape):
        raise DatasetError(
            f"The mask {path} has {mask.shape[1]} x {mask.shape[0]} pixels, which is not the form "
            f"of {slide.name} ({cols} x {rows}).",
            hint="A mask covers the whole slide.",
        )
    grid = Grid(shape=mask.shape, step_px=(rows / mask.shape[0], cols / mask.shape[1]))
    return TissueMask(mask=mask, grid=grid, method=f"file {path.name}", is_drawn=True)


def _read_picture(path: Path) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    from PIL import Image

    try:
        with BoundedFile(path) as file, Image.open(file) as image:
            if image.width * image.height > MAX_MASK_PIXELS:
                raise DatasetError(
                    f"The mask {path} has {image.width} x {image.height} pixels.",
                    hint=f"At most {MAX_MASK_PIXELS // 10**6} Mpx; a pixel every 4 um is plenty.",
                )
            return np.asarray(image.convert("L")) > 0
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{path} is not a picture that can be read: {error}.") from error


def _read_json(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DatasetError(f"{path} is larger than {MAX_FILE_BYTES // 2**20} MiB.")
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path} is not GeoJSON: {error}.") from error


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


def _to_slide_crs(geometry: Any, data: Any, slide: Slide) -> Any:
    """Bring a geometry to level-0 pixels."""
    if not slide.is_georeferenced:
        return geometry
    import shapely
    from rasterio.crs import CRS
    from rasterio.errors import CRSError
    from rasterio.warp import transform_geom

    named = data.get("crs") if isinstance(data, dict) else None
    try:
        source = CRS.from_user_input(named["properties"]["name"]) if named else _LON_LAT
        moved = transform_geom(source, slide.crs, geometry)
    except (CRSError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its coordinate reference system is not known ({error})") from error
    assert slide.transform is not None
    a, b, c, d, e, f = tuple(slide.transform)[:6]
    scale = 1 / (a * e - b * d)
    inverse = [e * scale, -b * scale, -d * scale, a * scale]
    offset = [-(inverse[0] * c + inverse[1] * f), -(inverse[2] * c + inverse[3] * f)]
    shape = shapely.affinity.affine_transform(
        shapely.from_geojson(json.dumps(moved)), [*inverse, *offset]
    )
    return json.loads(shapely.to_geojson(shape))

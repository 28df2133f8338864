"""Areas with a class: QuPath's GeoJSON, vector files of GIS, label rasters."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas_wsi.errors import DatasetError
from atlas_wsi.tissue.areas import MAX_FILE_BYTES, polygons_of, touching

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import shapely
    from affine import Affine
    from numpy.typing import NDArray
    from rasterio import DatasetReader

    from atlas_wsi.slides.slide import Slide

VECTORS = (".gpkg", ".shp", ".fgb", ".gml", ".kml")
RASTERS = (".tif", ".tiff", ".vrt", ".img", ".png")
MAX_RASTER_PIXELS = 10**8
MAX_AREAS = 2**18
_COLUMNS = ("class", "classification", "label", "name")


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """Where the classes stand in a file."""

    column: str | None = None
    """Property or column that holds the class; by default ``classification``, ``class``, ``label``
    or ``name``."""
    names: Mapping[int, str] | None = None
    """Class of each value of a label raster; other values are no class. By default each value but
    nodata is a class of that name."""


def read_names(path: Path) -> dict[int, str]:
    """Read the classes of a label raster.

    Parameters
    ----------
    path
        CSV with the columns ``value`` and ``class``.

    Returns
    -------
    dict
        Class by value.

    Raises
    ------
    DatasetError
        If it cannot be read, or names no class.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            names = {int(row["value"]): row["class"].strip() for row in csv.DictReader(file)}
    except (OSError, ValueError, KeyError, AttributeError, TypeError, csv.Error) as error:
        raise DatasetError(
            f"{path} is no CSV with the columns value (a whole number) and class: {error}."
        ) from error
    if not names or not all(names.values()):
        raise DatasetError(f"{path} names no class, or one without a name.")
    return names


def areas_by_class(
    path: Path, slide: Slide, labels: Labels | None = None
) -> dict[str, list[shapely.Polygon]]:
    """Read areas with their classes.

    Parameters
    ----------
    path
        GeoJSON features with ``classification`` (QuPath) or ``class`` among their properties; a
        GeoPackage, Shapefile or other vector file with a CRS; or a raster of class values, with a CRS
        or of the slide's form.
    slide
        The slide they lie on.
    labels
        Where the classes stand in the file.

    Returns
    -------
    dict
        Polygons in level-0 pixels by class; what has no class is left out.

    Raises
    ------
    DatasetError
        If the file cannot be read, holds no classified area, or none that touches the slide.
    """
    labels = labels or Labels()
    suffix = path.suffix.lower()
    if suffix in VECTORS:
        found = _from_vector(path, slide, labels.column)
    elif suffix in RASTERS:
        found = _from_raster(path, slide, labels.names)
    else:
        found = _from_geojson(path, slide, labels.column)
    if not any(found.values()):
        raise DatasetError(
            f"{path} holds no area with a class.",
            hint="Set the classification in QuPath, or name the column with --column.",
        )
    inside = {id(one) for one in touching(list(chain(*found.values())), slide, path)}
    kept = {name: [one for one in some if id(one) in inside] for name, some in found.items()}
    return {name: some for name, some in kept.items() if some}


def _from_geojson(path: Path, slide: Slide, column: str | None) -> dict[str, list[shapely.Polygon]]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DatasetError(f"{path} is larger than {MAX_FILE_BYTES // 2**20} MiB.")
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path} cannot be read as GeoJSON: {error}.") from error
    features = data.get("features") if isinstance(data, dict) else data
    if not isinstance(features, list):
        raise DatasetError(
            f"{path} is not GeoJSON: it holds no list of features.",
            hint="Export the annotations of QuPath as a FeatureCollection.",
        )
    by_class: dict[str, list[Any]] = {}
    for feature in features:
        if name := _class_of(feature, column):
            by_class.setdefault(name, []).append(feature)
    crs = {"crs": data["crs"]} if isinstance(data, dict) and "crs" in data else {}
    return {
        name: polygons_of({"type": "FeatureCollection", "features": some, **crs}, slide, path)
        for name, some in by_class.items()
    }


def _from_vector(path: Path, slide: Slide, column: str | None) -> dict[str, list[shapely.Polygon]]:
    try:
        import geopandas
    except ImportError as error:
        raise DatasetError(
            f"Reading {path} needs geopandas, which is not installed.",
            hint="pip install 'atlas-wsi[geo]', or convert it to GeoJSON.",
        ) from error
    try:
        table = geopandas.read_file(path)
        geometry = table.geometry
    except Exception as error:  # what GDAL's drivers raise is not told
        raise DatasetError(f"{path} cannot be read as a vector file: {error}.") from error
    columns = [str(name) for name in table.columns if name != geometry.name]
    name = column or next((one for one in _COLUMNS if one in columns), None)
    if name not in columns:
        raise DatasetError(
            f"{path} has no column {name or 'of classes'}; it has {', '.join(columns) or 'none'}.",
            hint="Name the column that holds the class: --column NAME.",
        )
    crs = table.crs.to_wkt() if table.crs is not None else None
    here = geometry.notna() & table[name].notna()
    names = [str(value) for value in table[name][here]]
    return _by_class(names, geometry[here].to_numpy(), crs, path, slide)


def _from_raster(
    path: Path, slide: Slide, names: Mapping[int, str] | None
) -> dict[str, list[shapely.Polygon]]:
    import rasterio
    import shapely.geometry
    from rasterio.features import shapes

    try:
        with rasterio.open(path) as raster:
            transform = _transform(raster, path, slide)
            crs = raster.crs.to_wkt() if raster.crs else None
            values, known = raster.read(1), raster.read_masks(1) > 0
    except rasterio.errors.RasterioError as error:
        raise DatasetError(f"{path} cannot be read as a label raster: {error}.") from error
    if names is not None:
        known &= np.isin(values, list(names))
        if not known.any():
            seen = ", ".join(str(value) for value in np.unique(values)[:10])
            raise DatasetError(
                f"{path} holds none of the values {', '.join(map(str, names))}, but {seen}."
            )
    if known.any() and not _fits(values[known]):
        raise DatasetError(f"{path} holds values beyond 32 bits, expected numbers of classes.")
    told, geometries = [], []
    for geometry, value in shapes(values.astype(np.int32), mask=known, transform=transform):
        told.append(names[int(value)] if names else str(int(value)))
        geometries.append(shapely.geometry.shape(geometry))
        if len(told) > MAX_AREAS:
            raise DatasetError(
                f"{path} falls into more than {MAX_AREAS:,} areas.",
                hint="Smooth it first, for example with gdal_sieve.py.",
            )
    return _by_class(told, np.array(geometries), crs, path, slide)


def _fits(values: NDArray[Any]) -> bool:
    bounds = np.iinfo(np.int32)
    return bool(values.min() >= bounds.min and values.max() <= bounds.max)


def _by_class(
    names: list[str], geometries: NDArray[Any], wkt: str | None, path: Path, slide: Slide
) -> dict[str, list[shapely.Polygon]]:
    """Bring geometries to level 0, and sort their polygons by class."""
    import shapely

    if slide.is_georeferenced and len(geometries):
        to_pixels = _to_pixels(path, slide, wkt)
        try:
            geometries = shapely.transform(geometries, to_pixels)
        except Exception as error:  # GDAL has errors of its own for systems that do not meet
            raise DatasetError(
                f"{path} cannot be brought to the coordinates of {slide.name}: {error}."
            ) from error
    parts, of = shapely.get_parts(shapely.make_valid(geometries), return_index=True)
    parts, again = shapely.get_parts(parts, return_index=True)  # make_valid may nest them
    found: dict[str, list[shapely.Polygon]] = {}
    for part, i in zip(parts, of[again], strict=True):
        if part.geom_type == "Polygon" and not part.is_empty:
            found.setdefault(names[i], []).append(part)
    return found


def _to_pixels(
    path: Path, slide: Slide, wkt: str | None
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Return what brings coordinates `(n, 2)` of a CRS to level-0 pixels of a scene."""
    from affine import Affine
    from rasterio.warp import transform

    if wkt is None:
        raise DatasetError(
            f"{path} has no coordinate reference system, so its place in {slide.name} is not known.",
            hint="Assign one: ogr2ogr -a_srs or gdal_edit.py -a_srs.",
        )
    assert slide.transform is not None
    inverse = ~Affine(*tuple(slide.transform)[:6])

    def to_pixels(points: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = (np.array(v) for v in transform(wkt, slide.crs, points[:, 0], points[:, 1])[:2])
        return np.stack(
            [inverse.a * x + inverse.b * y + inverse.c, inverse.d * x + inverse.e * y + inverse.f],
            axis=1,
        )

    return to_pixels


def _transform(raster: DatasetReader, path: Path, slide: Slide) -> Affine:
    """Check a label raster, and return the transform of its pixels: to its CRS, or to level 0."""
    from affine import Affine

    if raster.width * raster.height > MAX_RASTER_PIXELS:
        raise DatasetError(
            f"{path} has {raster.height} x {raster.width} pixels, at most "
            f"{MAX_RASTER_PIXELS // 10**6} million are read.",
            hint="Cut it to the scene: gdalwarp -te ...",
        )
    if np.dtype(raster.dtypes[0]).kind not in "iu":
        raise DatasetError(f"{path} holds {raster.dtypes[0]}, expected whole numbers as classes.")
    if slide.is_georeferenced:
        return raster.transform
    rows, cols = slide.shape
    step = rows / raster.height, cols / raster.width
    if abs(step[0] / step[1] - 1) > 0.02 + 1 / min(raster.shape):
        raise DatasetError(
            f"{path} has {raster.height} x {raster.width} pixels, which is not the form of "
            f"{slide.name} ({rows} x {cols}).",
            hint="A label raster of a slide covers all of it.",
        )
    return Affine(step[1], 0, 0, 0, step[0], 0)


def _class_of(feature: Any, column: str | None) -> str | None:
    properties = feature.get("properties") if isinstance(feature, dict) else None
    if not isinstance(properties, dict):
        return None
    places = (column,) if column else ("classification", *_COLUMNS)
    given = next((properties[key] for key in places if properties.get(key)), None)
    if isinstance(given, dict):
        given = given.get("name")
    return given if isinstance(given, str) and given else None

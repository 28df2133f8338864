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
    from collections.abc import Mapping
    from pathlib import Path

    import shapely
    from rasterio import DatasetReader

    from atlas_wsi.slides.slide import Slide

VECTORS = (".gpkg", ".shp", ".fgb", ".gml", ".kml")
RASTERS = (".tif", ".tiff", ".vrt", ".img", ".png")
MAX_RASTER_PIXELS = 10**8
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
        features, crs = _from_vector(path, slide, labels.column)
    elif suffix in RASTERS:
        features, crs = _from_raster(path, slide, labels.names)
    else:
        features, crs = _from_geojson(path)
    by_class: dict[str, list[Any]] = {}
    for feature in features:
        if name := _class_of(feature, labels.column):
            by_class.setdefault(name, []).append(feature)
    if not by_class:
        raise DatasetError(
            f"{path} holds no area with a class.",
            hint="Set the classification in QuPath, or name the column with --column.",
        )
    found = {
        name: polygons_of({"type": "FeatureCollection", "features": some, **crs}, slide, path)
        for name, some in by_class.items()
    }
    inside = {id(one) for one in touching(list(chain(*found.values())), slide, path)}
    kept = {name: [one for one in some if id(one) in inside] for name, some in found.items()}
    return {name: some for name, some in kept.items() if some}


def _from_geojson(path: Path) -> tuple[list[Any], dict[str, Any]]:
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
    return features, {"crs": data["crs"]} if isinstance(data, dict) and "crs" in data else {}


def _from_vector(
    path: Path, slide: Slide, column: str | None
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    try:
        import geopandas
    except ImportError as error:
        raise DatasetError(
            f"Reading {path} needs geopandas, which is not installed.",
            hint="pip install 'atlas-wsi[geo]', or convert it to GeoJSON.",
        ) from error
    import shapely

    try:
        table = geopandas.read_file(path)
    except Exception as error:  # what GDAL's drivers raise is not told
        raise DatasetError(f"{path} cannot be read as a vector file: {error}.") from error
    columns = [str(name) for name in table.columns if name != table.geometry.name]
    name = column or next((one for one in _COLUMNS if one in columns), None)
    if name not in columns:
        raise DatasetError(
            f"{path} has no column {name or 'of classes'}; it has {', '.join(columns) or 'none'}.",
            hint="Name the column that holds the class: --column NAME.",
        )
    crs = _crs_of(path, slide, table.crs.to_wkt() if table.crs is not None else None)
    here = table[table.geometry.notna() & table[name].notna()]
    return [
        {
            "type": "Feature",
            "geometry": json.loads(shapely.to_geojson(shapely.force_2d(geometry))),
            "properties": {name: str(value)},
        }
        for geometry, value in zip(here.geometry, here[name], strict=True)
    ], crs


def _from_raster(
    path: Path, slide: Slide, names: Mapping[int, str] | None
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    import rasterio
    from rasterio.features import shapes

    try:
        with rasterio.open(path) as raster:
            transform, crs = _place(raster, path, slide)
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
    found = shapes(values.astype(np.int32), mask=known, transform=transform)
    return [
        {
            "type": "Feature",
            "geometry": geometry,
            "properties": {"class": names[int(value)] if names else str(int(value))},
        }
        for geometry, value in found
    ], crs


def _place(raster: DatasetReader, path: Path, slide: Slide) -> tuple[Any, dict[str, Any]]:
    """Return the transform of a label raster's pixels, and the CRS that it leads to."""
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
        return raster.transform, _crs_of(path, slide, raster.crs.to_wkt() if raster.crs else None)
    rows, cols = slide.shape
    step = rows / raster.height, cols / raster.width
    if abs(step[0] / step[1] - 1) > 0.02 + 1 / min(raster.shape):
        raise DatasetError(
            f"{path} has {raster.height} x {raster.width} pixels, which is not the form of "
            f"{slide.name} ({rows} x {cols}).",
            hint="A label raster of a slide covers all of it.",
        )
    return Affine(step[1], 0, 0, 0, step[0], 0), {}


def _crs_of(path: Path, slide: Slide, wkt: str | None) -> dict[str, Any]:
    if not slide.is_georeferenced:
        return {}
    if wkt is None:
        raise DatasetError(
            f"{path} has no coordinate reference system, so its place in {slide.name} is not known.",
            hint="Assign one: ogr2ogr -a_srs or gdal_edit.py -a_srs.",
        )
    return {"crs": {"type": "name", "properties": {"name": wkt}}}


def _class_of(feature: Any, column: str | None) -> str | None:
    properties = feature.get("properties") if isinstance(feature, dict) else None
    if not isinstance(properties, dict):
        return None
    places = (column,) if column else ("classification", *_COLUMNS)
    given = next((properties[key] for key in places if properties.get(key)), None)
    if isinstance(given, dict):
        given = given.get("name")
    return given if isinstance(given, str) and given else None

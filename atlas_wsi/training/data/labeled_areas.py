"""Areas with a class: QuPath's GeoJSON, vector files of GIS, label rasters."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas_wsi.errors import DatasetError
from atlas_wsi.files import read_csv, read_json, require_extra
from atlas_wsi.tissue.shapes import crs_of, shapes_of, to_level0

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import shapely
    from affine import Affine
    from numpy.typing import NDArray
    from rasterio import DatasetReader

    from atlas_wsi.slides.slide import Slide

    _Found = tuple[list[str], list[shapely.Geometry], str | None]
    """Names of classes, what has each, and the coordinate reference system."""

VECTORS = (".gpkg", ".shp", ".fgb", ".gml", ".kml")
RASTERS = (".tif", ".tiff", ".vrt", ".img", ".png")
MAX_RASTER_PIXELS = 10**8
MAX_AREAS = 2**18
_COLUMNS = ("class", "classification", "label", "name")


def read_names(path: Path) -> dict[int, str]:
    """Read the classes of a label raster."""
    try:
        names = {int(row["value"]): row["class"] for row in read_csv(path, ("value", "class"))[1]}
    except ValueError as error:
        raise DatasetError(
            f"{path} is no CSV with the columns value (a whole number) and class: {error}."
        ) from error
    if not names or not all(names.values()):
        raise DatasetError(f"{path} names no class, or one without a name.")
    return names


def areas_by_class(
    path: Path, slide: Slide, *, column: str | None = None, names: Mapping[int, str] | None = None
) -> dict[str, list[shapely.Polygon]]:
    """Read areas by class, from a `column`, or from a label raster with `names` of its values."""
    suffix = path.suffix.lower()
    if suffix in VECTORS:
        labels, shapes, crs = _from_vector(path, column)
    elif suffix in RASTERS:
        labels, shapes, crs = _from_raster(path, slide, names)
    else:
        labels, shapes, crs = _from_geojson(path, slide, column)
    if not labels:
        raise DatasetError(
            f"{path} holds no area with a class.",
            hint="Set the classification in QuPath, or name the column with --column.",
        )
    polygons, of = to_level0(shapes, crs, slide, path)
    of_areas = [labels[i] for i in of]
    if suffix not in RASTERS:
        of_areas, polygons = _apart(of_areas, polygons, path)
    found: dict[str, list[shapely.Polygon]] = {}
    for name, polygon in zip(of_areas, polygons, strict=True):
        found.setdefault(name, []).append(polygon)
    return found


def _from_geojson(path: Path, slide: Slide, column: str | None) -> _Found:
    data = read_json(path, "GeoJSON")
    features = data.get("features") if isinstance(data, dict) else data
    if not isinstance(features, list):
        raise DatasetError(
            f"{path} is not GeoJSON: it holds no list of features.",
            hint="Export the annotations of QuPath as a FeatureCollection.",
        )
    labeled: list[tuple[Any, dict[str, Any]]] = [
        (feature, feature["properties"])
        for feature in features
        if isinstance(feature, dict) and isinstance(feature.get("properties"), dict)
    ]
    known = [
        key for key in ("classification", *_COLUMNS) if any(_name(f.get(key)) for _, f in labeled)
    ]
    if column is not None and not any(column in facts for _, facts in labeled):
        raise _no_column(path, column, sorted({str(key) for _, facts in labeled for key in facts}))
    place = column or next(iter(known), None)
    names, shapes = [], []
    for feature, facts in labeled:
        if place is not None and (name := _name(facts.get(place))):
            own = shapes_of(feature, path)
            names += [name] * len(own)
            shapes += own
    return names, shapes, crs_of(data, slide, path)


def _from_vector(path: Path, column: str | None) -> _Found:
    geopandas = require_extra("geopandas", "geo", to=f"Reading {path}", error=DatasetError)
    try:
        table = geopandas.read_file(path)
        geometry = table.geometry
    except Exception as error:  # what GDAL's drivers raise is not documented
        raise DatasetError(f"{path} cannot be read as a vector file: {error}.") from error
    columns = [str(name) for name in table.columns if name != geometry.name]
    place = column or next((one for one in _COLUMNS if one in columns), None)
    if place not in columns:
        raise _no_column(path, place, columns)
    rows = [
        (name, shape)
        for value, shape in zip(table[place].tolist(), geometry, strict=True)
        if (name := _name(value)) and shape is not None
    ]
    crs = table.crs.to_wkt() if table.crs is not None else None
    return [name for name, _ in rows], [shape for _, shape in rows], crs


def _no_column(path: Path, column: str | None, others: list[str]) -> DatasetError:
    return DatasetError(
        f"{path} has no column {column or 'of classes'}; it has {', '.join(others) or 'none'}.",
        hint="Name the column that holds the class: --column NAME.",
    )


def _name(value: Any) -> str | None:
    """Return the class that a table's value or QuPath's classification names, if any."""
    if isinstance(value, dict) and isinstance(value.get("names"), list):  # QuPath's derived classes
        value = ": ".join(str(part) for part in value["names"])
    elif isinstance(value, dict):
        value = value.get("name")
    if isinstance(value, float):  # whole numbers, in a column where some are missing
        value = int(value) if value.is_integer() else None if math.isnan(value) else value
    if not isinstance(value, (str, int, float)):
        return None
    return str(value).strip() or None


def _apart(
    names: list[str], polygons: list[shapely.Polygon], path: Path
) -> tuple[list[str], list[shapely.Polygon]]:
    """Give what two classes share to the smaller area: a tumor drawn within tissue is tumor."""
    import shapely

    shapes = np.array(polygons, dtype=object)
    area, kinds = shapely.area(shapes), np.unique(names, return_inverse=True)[1]
    i, j = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    differ = kinds[i] != kinds[j]
    i, j = i[differ], j[differ]
    meet = shapely.relate_pattern(shapes[i], shapes[j], "T********")  # their insides do
    i, j = i[meet], j[meet]
    twice = np.flatnonzero(shapely.equals(shapes[i], shapes[j]))
    if len(twice):
        one, other = i[twice[0]], j[twice[0]]
        x, y = (round(v) for v in shapes[one].centroid.coords[0])
        raise DatasetError(
            f"{path} calls the same area {names[one]} and {names[other]}, at level-0 x {x}, y {y}.",
            hint="Delete one of the two.",
        )
    smaller = (area[j] < area[i]) | ((area[j] == area[i]) & (j < i))
    i, j = i[smaller], j[smaller]
    order = np.argsort(i, kind="stable")
    larger, first = np.unique(i[order], return_index=True)
    rest = shapes.copy()
    for k, within in zip(larger, np.split(j[order], first[1:]), strict=False):
        rest[k] = shapely.difference(shapes[k], shapely.union_all(shapes[within]))
    parts, of = shapely.get_parts(rest, return_index=True)
    kept = (shapely.get_type_id(parts) == shapely.GeometryType.POLYGON) & ~shapely.is_empty(parts)
    return [names[k] for k in of[kept]], parts[kept].tolist()


def _from_raster(path: Path, slide: Slide, names: Mapping[int, str] | None) -> _Found:
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
    of_areas, geometries = [], []
    for geometry, value in shapes(values.astype(np.int32), mask=known, transform=transform):
        of_areas.append(names[int(value)] if names else str(int(value)))
        geometries.append(shapely.geometry.shape(geometry))
        if len(of_areas) > MAX_AREAS:
            raise DatasetError(
                f"{path} falls into more than {MAX_AREAS:,} areas.",
                hint="Smooth it first, for example with gdal_sieve.py.",
            )
    return of_areas, geometries, crs


def _fits(values: NDArray[Any]) -> bool:
    bounds = np.iinfo(np.int32)
    return bool(values.min() >= bounds.min and values.max() <= bounds.max)


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

"""Regions as GeoJSON that QuPath and GIS programs read."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas_wsi.files import write_text
from atlas_wsi.heatmap.regions import MIN_CELLS, Region, find_regions
from atlas_wsi.tissue.shapes import apply_affine

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from shapely import MultiPolygon, Polygon

    from atlas_wsi.heatmap.heatmap import Heatmap
    from atlas_wsi.heatmap.records import SlideInfo
    from atlas_wsi.slides.slide import Slide

_NAMESPACE = uuid.UUID("6d0d6c1e-6b5f-5b0e-9a53-6f0a4f3b7f21")


def write_geojson(heatmap: Heatmap, path: Path) -> tuple[str, ...]:
    """Write the regions of a heatmap.

    Parameters
    ----------
    heatmap
        The result.
    path
        The file to write.

    Returns
    -------
    tuple[str, ...]
        A warning if there were more regions than a viewer can open.

    Notes
    -----
    Slides: level-0 pixels `(x, y)` from the top left, as QuPath has it. Georeferenced scenes:
    coordinates of the scene's CRS, which is named in the member ``crs``. RFC 7946 knows only
    longitude and latitude; GIS programs read the older member, and nothing is reprojected.
    """
    regions = find_regions(heatmap)
    collection = _collection(
        heatmap.slide, [_feature(heatmap, region) for region in regions.regions]
    )
    collection["atlas"] = {
        "slide": heatmap.slide.name,
        "model": heatmap.run.model.name,
        "min_cells": MIN_CELLS,
        "left_out": regions.n_left_out,
    }
    _write_json(collection, path)
    return regions.warnings


def write_qupath(heatmap: Heatmap, path: Path) -> tuple[str, ...]:
    """Write the regions of a slide or scene in level-0 pixels: QuPath knows no coordinates."""
    in_pixels = heatmap.slide.model_copy(update={"crs": None, "transform": None})
    return write_geojson(replace(heatmap, slide=in_pixels), path)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Annotation:
    """An area that a person drew or confirmed."""

    polygon: Polygon | MultiPolygon
    """In level-0 pixels `(x, y)`; may have holes."""
    name: str
    """Its class."""
    color: str
    """Color of the class, ``#rrggbb``."""


def write_annotations(
    annotations: Sequence[Annotation], path: str | os.PathLike[str], slide: SlideInfo | Slide
) -> None:
    """Write areas as QuPath reads them and `atlas-wsi train regions` learns from them.

    Parameters
    ----------
    annotations
        The areas.
    path
        The file to write; it appears when it is whole.
    slide
        The slide of the areas.

    Raises
    ------
    OutputNotWritableError
        If the file cannot be written.
    """
    features = [
        _annotation(slide, area.polygon, name=area.name, color=area.color, measurements={})
        for area in annotations
    ]
    _write_json(_collection(slide, features), Path(path))


def _write_json(collection: dict[str, Any], path: Path) -> None:
    text = json.dumps(collection, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    write_text(path, text)


def _collection(slide: SlideInfo | Slide, features: list[dict[str, Any]]) -> dict[str, Any]:
    collection: dict[str, Any] = {"type": "FeatureCollection"}
    if slide.is_georeferenced:
        name = _crs_name(slide.crs)
        collection["crs"] = {"type": "name", "properties": {"name": name}}
    return {**collection, "features": features}


def _feature(heatmap: Heatmap, region: Region) -> dict[str, Any]:
    area = float(region.polygon.area) * heatmap.slide.mpp[0] * heatmap.slide.mpp[1]
    area /= 1e12 if heatmap.slide.is_georeferenced else 1e6
    measurements = {
        f"prob_{other}": round(p, 5)
        for other, p in zip(heatmap.classes, region.probabilities, strict=True)
    }
    measurements[f"area_{heatmap.area_unit}"] = area
    return _annotation(
        heatmap.slide,
        region.polygon,
        name=heatmap.classes[region.class_index],
        color=heatmap.colors[region.class_index],
        measurements=measurements,
    )


def _annotation(
    slide: SlideInfo | Slide,
    polygon: Polygon | MultiPolygon,
    *,
    name: str,
    color: str,
    measurements: dict[str, float],
) -> dict[str, Any]:
    import shapely

    if slide.is_georeferenced:
        assert slide.transform is not None
        to_crs = slide.transform
        polygon = shapely.transform(polygon, lambda xy: apply_affine(to_crs, xy))
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(_NAMESPACE, f"{slide.name}/{name}/{polygon.wkt}")),
        "geometry": json.loads(shapely.to_geojson(polygon)),
        "properties": {
            "objectType": "annotation",
            "classification": {"name": name, "color": list(bytes.fromhex(color[1:]))},
            "measurements": measurements,
        },
    }


def _crs_name(wkt: str | None) -> str:
    from rasterio.crs import CRS

    crs = CRS.from_wkt(wkt)
    authority = crs.to_authority()
    if authority is None:
        return str(crs.to_wkt())
    if authority == ("EPSG", "4326"):
        return "urn:ogc:def:crs:OGC:1.3:CRS84"  # longitude first, as the coordinates are
    return f"urn:ogc:def:crs:{authority[0]}::{authority[1]}"

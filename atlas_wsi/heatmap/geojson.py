"""Regions as GeoJSON that QuPath and GIS programs read."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas_wsi.heatmap.regions import MAX_REGIONS, MIN_CELLS, Region, find_regions

if TYPE_CHECKING:
    from pathlib import Path

    from atlas_wsi.heatmap.heatmap import Heatmap

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
    found = find_regions(heatmap)
    collection: dict[str, Any] = {"type": "FeatureCollection"}
    name = _crs_name(heatmap.slide.crs) if heatmap.slide.is_georeferenced else None
    if name is not None:
        collection["crs"] = {"type": "name", "properties": {"name": name}}
    collection["features"] = [_feature(heatmap, region) for region in found.regions]
    collection["atlas"] = {
        "slide": heatmap.slide.name,
        "model": heatmap.run.model.name,
        "min_cells": MIN_CELLS,
        "left_out": found.n_left_out,
    }
    path.write_text(
        json.dumps(collection, allow_nan=False, separators=(",", ":"), ensure_ascii=False),
        encoding="utf-8",
    )
    if not found.n_left_out:
        return ()
    left_out = f"{found.n_left_out} smaller ones are in the heatmap only"
    return (f"{path.name} holds the {MAX_REGIONS} largest regions; {left_out}.",)


def _feature(heatmap: Heatmap, region: Region) -> dict[str, Any]:
    import shapely

    name = heatmap.classes[region.class_index]
    polygon = region.polygon
    area = float(polygon.area) * heatmap.slide.mpp[0] * heatmap.slide.mpp[1]
    area /= 1e12 if heatmap.slide.is_georeferenced else 1e6
    if heatmap.slide.is_georeferenced:
        polygon = shapely.transform(polygon, lambda xy: _to_crs(heatmap, xy))
    measurements = {
        f"prob_{other}": round(p, 5)
        for other, p in zip(heatmap.classes, region.probabilities, strict=True)
    }
    measurements[f"area_{heatmap.area_unit}"] = area
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(_NAMESPACE, f"{heatmap.slide.name}/{name}/{polygon.wkt}")),
        "geometry": json.loads(shapely.to_geojson(polygon)),
        "properties": {
            "objectType": "annotation",
            "classification": {
                "name": name,
                "color": list(bytes.fromhex(heatmap.colors[region.class_index][1:])),
            },
            "measurements": measurements,
        },
    }


def _to_crs(heatmap: Heatmap, xy: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    assert heatmap.slide.transform is not None
    a, b, c, d, e, f = heatmap.slide.transform
    x, y = xy[:, 0], xy[:, 1]
    return np.column_stack([a * x + b * y + c, d * x + e * y + f])


def _crs_name(wkt: str | None) -> str:
    from rasterio.crs import CRS

    crs = CRS.from_wkt(wkt)
    authority = crs.to_authority()
    if authority is None:
        return str(crs.to_wkt())
    if authority == ("EPSG", "4326"):
        return "urn:ogc:def:crs:OGC:1.3:CRS84"  # longitude first, as the coordinates are
    return f"urn:ogc:def:crs:{authority[0]}::{authority[1]}"

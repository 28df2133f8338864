"""Annotations for the Digital Slide Archive (HistomicsUI, girder large_image)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas_wsi.heatmap.regions import find_regions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from shapely import MultiPolygon, Polygon

    from atlas_wsi.heatmap.heatmap import Heatmap

_FILL, _STRONGEST = 0.25, 0.7


def write_dsa(heatmap: Heatmap, path: Path) -> tuple[str, ...]:
    """Write a list of annotations: the regions, and a heatmap per class."""
    regions = find_regions(heatmap)
    elements = [
        _outline(heatmap, region.class_index, piece)
        for region in regions.regions
        for piece in _without_holes(region.polygon)
    ]
    about = _annotation(heatmap, "regions", "Where each class is the most probable one.")
    documents = [{**about, "elements": elements}]
    for index, name in enumerate(heatmap.classes):
        about = _annotation(heatmap, name, f"Probability of {name}, 0 to 1.")
        documents.append({**about, "elements": [_map(heatmap, index)]})
    text = json.dumps(documents, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    path.write_text(text, encoding="utf-8")
    return regions.warnings


def _annotation(heatmap: Heatmap, title: str, description: str) -> dict[str, Any]:
    return {
        "name": f"{heatmap.run.model.name}: {title}",
        "description": description,
        "attributes": {
            "slide": heatmap.slide.name,
            "model": heatmap.run.model.name,
            "model_sha256": heatmap.run.model.sha256,
            "creator": "atlas-wsi",
        },
    }


def _outline(heatmap: Heatmap, index: int, polygon: Polygon) -> dict[str, Any]:
    color = heatmap.colors[index]
    return {
        "type": "polyline",
        "closed": True,
        "points": [[x, y, 0] for x, y in polygon.exterior.coords[:-1]],
        "fillColor": _rgba(color, _FILL),
        "lineColor": _rgba(color, 1),
        "lineWidth": 2,
        "group": heatmap.classes[index],
        "label": {"value": heatmap.classes[index]},
    }


def _map(heatmap: Heatmap, index: int) -> dict[str, Any]:
    """Return a class's probabilities; values belong to the centers of cells, glass is 0."""
    (step_y, step_x), (y, x) = heatmap.grid.step_px, heatmap.grid.origin_px
    values = np.nan_to_num(heatmap.probabilities[index].astype(np.float32))
    color = heatmap.colors[index]
    return {
        "type": "griddata",
        "interpretation": "contour",
        "gridWidth": heatmap.grid.shape[1],
        "origin": [x + step_x / 2, y + step_y / 2, 0],
        "dx": step_x,
        "dy": step_y,
        "values": [round(v, 4) for v in values.ravel().tolist()],
        "colorRange": [_rgba(color, 0), _rgba(color, _STRONGEST)],
        "rangeValues": [0, 1],
        "normalizeRange": False,
        "minColor": _rgba(color, 0),
        "maxColor": _rgba(color, _STRONGEST),
        "group": heatmap.classes[index],
        "label": {"value": heatmap.classes[index]},
    }


def _without_holes(polygon: Polygon | MultiPolygon) -> Iterator[Polygon]:
    """Cut areas through their holes: a polyline has none."""
    import shapely

    for part in shapely.get_parts(polygon):
        if part.geom_type != "Polygon" or part.area == 0:
            continue
        if not part.interiors:
            yield part
            continue
        x0, y0, x1, y1 = part.bounds
        cut = shapely.Polygon(part.interiors[0]).centroid.x
        for half in (shapely.box(x0, y0, cut, y1), shapely.box(cut, y0, x1, y1)):
            yield from _without_holes(part.intersection(half))


def _rgba(color: str, alpha: float) -> str:
    r, g, b = bytes.fromhex(color[1:])
    return f"rgba({r}, {g}, {b}, {alpha:g})"

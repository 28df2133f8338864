"""What napari calls to save layers as annotations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import shapely
from napari.layers import Shapes

from atlas_wsi import Annotation, DatasetError, write_annotations
from napari_atlas_wsi._export import write_labels
from napari_atlas_wsi._layers import FRAME_KEY, RESULT_KEY, SLIDE_KEY
from napari_atlas_wsi._scope import DRAWN, areas_of_shapes

DEFAULT_CLASS = ("region", "#e64b35")


def write_shapes(path: str, data: Any, meta: dict[str, Any]) -> list[str]:
    """Save drawn areas, given by their corners, as GeoJSON for QuPath and for training."""
    facts = meta.get("metadata", {})
    if SLIDE_KEY not in facts:
        raise DatasetError(
            "The layer has no record of the slide that it was drawn on.",
            hint="Draw on a layer made with 'New annotation layer' of the Heatmap panel.",
        )
    slide, frame = facts[SLIDE_KEY], facts[FRAME_KEY]
    keys = ("shape_type", "scale", "translate", "affine", "features")
    layer = Shapes(data, **{key: meta[key] for key in keys if key in meta})
    colors = facts.get("atlas_wsi_colors", {})
    names = layer.features.get("class", [DEFAULT_CLASS[0]] * len(data))
    drawn = [str(name) for name, kind in zip(names, layer.shape_type, strict=True) if kind in DRAWN]
    areas = [
        Annotation(
            polygon=shapely.make_valid(shapely.Polygon(area[:, ::-1])),
            name=name,
            color=colors.get(name, DEFAULT_CLASS[1]),
        )
        for name, area in zip(drawn, areas_of_shapes(layer, frame), strict=True)
    ]
    if not areas:
        raise DatasetError(
            "The layer has no area.", hint="Draw rectangles, ellipses or polygons, not lines."
        )
    write_annotations(areas, path, slide)
    return [path]


def write_classes(path: str, data: Any, meta: dict[str, Any]) -> list[str]:
    """Save a class map, corrected or not, as GeoJSON for QuPath and for training."""
    heatmap = meta.get("metadata", {}).get(RESULT_KEY)
    labels = np.asarray(data)
    if heatmap is None or labels.shape != heatmap.grid.shape:
        raise DatasetError(
            "The layer is not the class map of a result.",
            hint="Save the layer that ends in ': classes'.",
        )
    if not labels.any():
        raise DatasetError("The class map is empty.", hint="Predict or paint first.")
    write_labels(heatmap, labels, Path(path))
    return [path]

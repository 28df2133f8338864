"""A heatmap as SpatialData: images, labels, shapes and a table in one Zarr store."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas_wsi.files import require_extra
from atlas_wsi.heatmap.overlay import backdrop
from atlas_wsi.heatmap.regions import find_regions
from atlas_wsi.interop.tiles import predicted_tiles

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from atlas_wsi.heatmap.heatmap import Heatmap

TILES = "tiles"


def write_spatialdata(
    heatmap: Heatmap, path: Path, thumbnail: NDArray[Any] | None
) -> tuple[str, ...]:
    """Write a SpatialData store; all elements are in level-0 pixels (system ``global``)."""
    import shapely

    spatialdata = require_extra("spatialdata", "spatialdata", to="Writing SpatialData")
    boxes, probabilities = predicted_tiles(heatmap)
    regions = find_regions(heatmap).regions
    shapes, tables = {}, {}
    if regions:
        columns: dict[str, Any] = {"class": [heatmap.classes[r.class_index] for r in regions]}
        for k, name in enumerate(heatmap.classes):
            columns[f"prob_{name}"] = [r.probabilities[k] for r in regions]
        shapes["regions"] = _shapes([r.polygon for r in regions], columns)
    if len(boxes):
        shapes[TILES] = _shapes(shapely.box(*boxes.T))
        tables[f"{_name(heatmap.run.model.name)}_{TILES}"] = _table(heatmap, boxes, probabilities)
    spatialdata.SpatialData(
        images=_images(heatmap, thumbnail),
        labels=_labels(heatmap),
        shapes=shapes,
        tables=tables,
        attrs={"atlas": {"slide": heatmap.slide.name, "model": heatmap.run.model.name}},
    ).write(path)
    return ()


def _images(heatmap: Heatmap, thumbnail: NDArray[Any] | None) -> dict[str, Any]:
    from spatialdata.models import Image2DModel

    probabilities = heatmap.probabilities.astype(np.float32)
    images = {
        "probabilities": Image2DModel.parse(
            probabilities,
            dims=("c", "y", "x"),
            c_coords=list(heatmap.classes),
            transformations=_transform(heatmap.grid.step_px, heatmap.grid.origin_px),
        )
    }
    if thumbnail is not None:
        shown = backdrop(heatmap, thumbnail)
        step = [n / m for n, m in zip(heatmap.slide.shape, shown.shape[:2], strict=True)]
        images["slide"] = Image2DModel.parse(
            shown.transpose(2, 0, 1),
            dims=("c", "y", "x"),
            c_coords=["r", "g", "b"],
            transformations=_transform((step[0], step[1]), (0.0, 0.0)),
        )
    return images


def _labels(heatmap: Heatmap) -> dict[str, Any]:
    """Return the most probable class (0 where nothing was predicted) and the tissue."""
    from spatialdata.models import Labels2DModel

    return {
        name: Labels2DModel.parse(
            values, dims=("y", "x"), transformations=_transform(grid.step_px, grid.origin_px)
        )
        for name, values, grid in (
            ("classes", (heatmap.argmax() + 1).astype(np.uint16), heatmap.grid),
            ("tissue", heatmap.tissue.mask.astype(np.uint8), heatmap.tissue.grid),
        )
    }


def _shapes(polygons: Any, columns: dict[str, Any] | None = None) -> Any:
    import geopandas
    from spatialdata.models import ShapesModel

    return ShapesModel.parse(geopandas.GeoDataFrame(columns, geometry=polygons))


def _table(heatmap: Heatmap, boxes: NDArray[np.int64], probabilities: NDArray[np.float32]) -> Any:
    import pandas as pd
    from anndata import AnnData
    from spatialdata.models import TableModel

    n, winner = len(boxes), probabilities.argmax(axis=1)
    about = pd.DataFrame(
        {
            "region": pd.Categorical.from_codes(np.zeros(n, int), _index([TILES])),
            "instance_id": np.arange(n),
            "class": pd.Categorical.from_codes(winner, _index(heatmap.classes)),
        },
        index=_index([str(i) for i in range(n)]),
    )
    table = AnnData(
        X=probabilities,
        obs=about,
        var=pd.DataFrame(index=_index(heatmap.classes)),
        uns={
            "class_colors": list(heatmap.colors),
            "atlas": {
                "slide": heatmap.slide.name,
                "model": heatmap.run.model.name,
                "model_sha256": heatmap.run.model.sha256,
                "mpp": list(heatmap.slide.mpp),
            },
        },
    )
    table.obsm["spatial"] = (boxes[:, :2] + boxes[:, 2:]) / 2
    return TableModel.parse(table, region=TILES, region_key="region", instance_key="instance_id")


def _index(names: Sequence[str]) -> Any:
    """Return names as Python strings: anndata cannot write those of pandas 3."""
    import pandas as pd

    return pd.Index(np.array(names, object), dtype=object)


def _transform(step: tuple[float, float], origin: tuple[float, float]) -> dict[str, Any]:
    from spatialdata import transformations

    scale = transformations.Scale(list(step), axes=("y", "x"))
    shift = transformations.Translation(list(origin), axes=("y", "x"))
    return {"global": transformations.Sequence([scale, shift])}


def _name(text: str) -> str:
    """Return a name of an element: letters, digits, ``-``, ``.`` and ``_`` only."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", text).lstrip("._") or "model"

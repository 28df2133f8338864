"""A heatmap as OME-Zarr (OME-NGFF 0.5, zarr 3), and back."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from atlas_wsi.errors import CorruptResultError
from atlas_wsi.heatmap.heatmap import Heatmap, most_probable
from atlas_wsi.heatmap.records import HeatmapRecord
from atlas_wsi.tissue.mask import TissueMask

if TYPE_CHECKING:
    from pathlib import Path

    import zarr
    from numpy.typing import NDArray

    from atlas_wsi.grid import Grid

CHUNK = 512
COARSEST = 256
MAX_BYTES = 1 << 33


def write_omezarr(heatmap: Heatmap, path: Path) -> tuple[str, ...]:
    """Write a heatmap as an OME-Zarr image with the most probable class and the tissue as labels."""
    import zarr

    unit, per_um = ("meter", 1e-6) if heatmap.slide.is_georeferenced else ("micrometer", 1.0)
    pixel = (heatmap.slide.mpp[0] * per_um, heatmap.slide.mpp[1] * per_um)
    n_levels = 1 + max(0, math.ceil(math.log2(max(heatmap.grid.shape) / COARSEST)))

    levels = [np.asarray(heatmap.probabilities, np.float16)]
    while len(levels) < n_levels:
        levels.append(_halve(levels[-1], -math.nan))  # as 0 / 0 gives it
    root = zarr.create_group(str(path), zarr_format=3)
    root.attrs.update(
        {
            "ome": {
                "version": "0.5",
                "multiscales": [
                    _multiscale(heatmap.slide.name, "cyx", heatmap.grid, n_levels, pixel, unit)
                ],
                "omero": {"channels": _channels(heatmap)},
            },
            "atlas": HeatmapRecord.of(heatmap).model_dump(mode="json"),
        }
    )
    for number, level in enumerate(levels):
        _write_array(root, str(number), level, "cyx", math.nan)

    labels = root.create_group("labels")
    labels.attrs["ome"] = {"version": "0.5", "labels": ["classes", "tissue"]}
    legend = [("not predicted", "#000000"), *zip(heatmap.classes, heatmap.colors, strict=True)]
    dtype = np.uint8 if len(heatmap.classes) < 255 else np.uint16
    winners = [(most_probable(level) + 1).astype(dtype) for level in levels]
    _write_label(labels, "classes", winners, heatmap.grid, pixel, unit, legend)
    tissue = [heatmap.tissue.mask.astype(np.float32)]
    while len(tissue) < n_levels:
        tissue.append(_halve(tissue[-1], 0))
    legend = [("background", "#000000"), ("tissue", "#ffffff")]
    mask = [(level >= 0.5).astype(np.uint8) for level in tissue]
    _write_label(labels, "tissue", mask, heatmap.tissue.grid, pixel, unit, legend)
    return ()


def _write_label(
    labels: zarr.Group,
    name: str,
    levels: list[NDArray[Any]],
    grid: Grid,
    pixel: tuple[float, float],
    unit: str,
    legend: list[tuple[str, str]],
) -> None:
    group = labels.create_group(name)
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [_multiscale(name, "yx", grid, len(levels), pixel, unit)],
        "image-label": {
            "version": "0.5",
            "colors": [
                {"label-value": value, "rgba": [*bytes.fromhex(color[1:]), 255 if value else 0]}
                for value, (_, color) in enumerate(legend)
            ],
            "properties": [
                {"label-value": value, "class": label} for value, (label, _) in enumerate(legend)
            ],
            "source": {"image": "../../"},
        },
    }
    for number, level in enumerate(levels):
        _write_array(group, str(number), level, "yx", 0)


def _write_array(
    group: zarr.Group, name: str, values: NDArray[Any], axes: str, fill_value: float
) -> None:
    chunks = (1,) * (values.ndim - 2) + tuple(min(CHUNK, n) for n in values.shape[-2:])
    array = group.create_array(
        name,
        shape=values.shape,
        dtype=values.dtype,
        chunks=chunks,
        fill_value=fill_value,
        dimension_names=list(axes),
    )
    # One chunk at a time: zarr writes several at once, and those in progress when one fails would
    # create their folders again after these were removed.
    for corner in np.ndindex(*array.cdata_shape):
        chunk = tuple(slice(i * n, (i + 1) * n) for i, n in zip(corner, chunks, strict=True))
        part = values[chunk]
        if not (np.isnan(part) if math.isnan(fill_value) else part == fill_value).all():
            array[chunk] = part


def _multiscale(
    name: str, axes: str, grid: Grid, n_levels: int, pixel: tuple[float, float], unit: str
) -> dict[str, Any]:
    # A value belongs to the center of its cell, and the center of level-0 pixel 0 is the origin.
    first = [1.0] * (len(axes) - 2)
    datasets = []
    for number in range(n_levels):
        step = [s * 2**number for s in grid.step_px]
        scale = [s * p for s, p in zip(step, pixel, strict=True)]
        center = [
            (o + s / 2 - 0.5) * p for o, s, p in zip(grid.origin_px, step, pixel, strict=True)
        ]
        datasets.append(
            {
                "path": str(number),
                "coordinateTransformations": [
                    {"type": "scale", "scale": first + scale},
                    {"type": "translation", "translation": [0.0] * len(first) + center},
                ],
            }
        )
    return {
        "name": name,
        "type": "mean",
        "metadata": {"description": "mean of the known values among 2 x 2"},
        "axes": [
            {"name": a, "type": "channel"}
            if a == "c"
            else {"name": a, "type": "space", "unit": unit}
            for a in axes
        ],
        "datasets": datasets,
    }


def _channels(heatmap: Heatmap) -> list[dict[str, Any]]:
    return [
        {
            "label": name,
            "color": color.removeprefix("#").upper(),
            "active": True,
            "window": {"min": 0.0, "max": 1.0, "start": 0.0, "end": 1.0},
        }
        for name, color in zip(heatmap.classes, heatmap.colors, strict=True)
    ]


def _halve(values: NDArray[Any], empty: float) -> NDArray[Any]:
    """Return means of the known values among 2 x 2; computed where any of them is not `empty`."""
    *rest, rows, cols = values.shape
    even = [(0, 0)] * len(rest) + [(0, rows % 2), (0, cols % 2)]
    padded = np.pad(values, even, constant_values=np.nan)
    quarters = [padded[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]
    halved = np.full(quarters[0].shape, empty, values.dtype)
    filled = (~np.isnan(padded) & (padded != empty)).any(axis=tuple(range(len(rest))))
    filled = filled.reshape(halved.shape[-2], 2, -1, 2).any(axis=(1, 3))
    parts = np.stack([quarter[..., filled].astype(np.float32) for quarter in quarters])
    known = ~np.isnan(parts)
    a, b, c, d = np.where(known, parts, 0)
    with np.errstate(invalid="ignore"):
        halved[..., filled] = ((a + b) + (c + d)) / known.sum(axis=0, dtype=np.float32)
    return halved


def read_omezarr(path: Path) -> Heatmap:
    """Read back what `write_omezarr` wrote; the probabilities are float16."""
    import zarr
    from zarr.storage import LocalStore

    from atlas_wsi.bounded import BoundedStore

    try:
        store = BoundedStore(LocalStore(path, read_only=True))
        root = zarr.open_group(store, mode="r", zarr_format=3, use_consolidated=False)
        record = HeatmapRecord.model_validate(root.attrs.get("atlas"))
        cells, tissue_cells = record.cells.grid, record.tissue_cells.grid
        probabilities = _read_array(
            root, "0", (len(record.classes), *cells.shape), np.dtype(np.float16)
        )
        mask = _read_array(root, "labels/tissue/0", tissue_cells.shape, np.dtype(np.uint8))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "attributes.atlas"
        raise CorruptResultError(
            f"{path}/zarr.json: {where}: {first['msg']} ({error.error_count()} errors in all)."
        ) from error
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise CorruptResultError(f"{path} cannot be read: {error}") from error
    return Heatmap(
        probabilities=probabilities,
        grid=cells,
        classes=tuple(c.name for c in record.classes),
        colors=tuple(c.color for c in record.classes),
        scores=record.scores,
        tissue=TissueMask(mask=mask != 0, grid=tissue_cells, method=record.tissue_method),
        slide=record.slide,
        run=record.run,
    )


def _read_array(
    root: zarr.Group, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> NDArray[Any]:
    import zarr

    array = root[name]
    if not isinstance(array, zarr.Array) or array.shape != shape or array.dtype != dtype:
        raise CorruptResultError(
            f"{root.store_path}/{name} should be an array {dtype} {shape}, "
            f"it is {getattr(array, 'dtype', 'a group')} {getattr(array, 'shape', '')}."
        )
    if array.nbytes > MAX_BYTES or math.prod(array.chunks) > MAX_BYTES:
        raise CorruptResultError(
            f"{root.store_path}/{name} says it is {array.nbytes} bytes in chunks of "
            f"{array.chunks}; at most {MAX_BYTES} bytes are read."
        )
    values: NDArray[Any] = np.asarray(array[...])
    return values

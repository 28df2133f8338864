"""Predict two overlapping cuts of scenes, and compare them where they overlap.

    python benchmarks/cuts.py SCENE... [--model landcover-rgb]

The cuts are the upper left and the lower right of a scene, apart by whole windows of the model, or
by whole cells if the scene is too small. Columns:

- input: pixels of the overlap, as the model sees them, that differ between the cuts; of a scene that
  is reduced, the outermost pixel is left out, to which pixels beyond the cut contribute
- windows: those that depend on the same pixels in both cuts; alone: cells of these that differ
  when each window is seen alone
- class: cells of the overlap whose class differs with context

`input` and `alone` must be 0; else the exit code is 1.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rasterio
import torch
from damage import CELL_PX, Reading, change, options_of
from rasterio.control import GroundControlPoint
from rasterio.windows import Window

import atlas_wsi
from atlas_wsi.streaming.working_image import open_working_image

if TYPE_CHECKING:
    from atlas_wsi.grid import Box


def cut(source: Path, path: Path, window: Window) -> Path:
    """Write a part of a scene, with all that is known of its samples."""
    with rasterio.open(source) as raster:
        points, crs = raster.gcps
        profile = raster.profile | {"height": window.height, "width": window.width}
        profile |= {"transform": raster.window_transform(window), "driver": "GTiff"}
        with rasterio.open(path, "w", **profile) as out:
            out.write(raster.read(window=window))
            out.update_tags(**raster.tags())
            for band in raster.indexes:
                out.update_tags(band, **raster.tags(band))
            out.scales, out.offsets, out.units = raster.scales, raster.offsets, raster.units
            out.colorinterp, out.descriptions = raster.colorinterp, raster.descriptions
            if points:
                out.gcps = [moved(one, window) for one in points], crs
    return path


def moved(point: GroundControlPoint, window: Window) -> GroundControlPoint:
    """Return a control point in the pixels of a window."""
    row, col = point.row - window.row_off, point.col - window.col_off
    return GroundControlPoint(row, col, point.x, point.y, point.z)


def places_of(n: int, step: float, window_px: int) -> tuple[int, slice, slice]:
    """Return where the second cut begins in working pixels, and both cuts along an axis."""
    cells = int(n / step) // CELL_PX
    unit = window_px // CELL_PX if cells * CELL_PX >= 3 * window_px else 1
    begin = max(1, cells // 6 // unit) * unit
    first, second = (0, cells - max(1, cells // 6)), (begin, cells)
    cuts = (slice(*(round(i * CELL_PX * step) for i in ends)) for ends in (first, second))
    return begin * CELL_PX, *cuts


def shifted(box: Box, rows: int, cols: int) -> Box:
    """Move a box."""
    return replace(box, row=box.row - rows, col=box.col - cols)


def compare(path: Path, folder: Path, model_name: str) -> list[str]:
    """Compare the two cuts of a scene."""
    options: dict[str, Any] = {k: v for k, v in options_of(path, 1).items() if k == "scale"}
    model = atlas_wsi.load_model(model_name)
    with atlas_wsi.open_slide(path, **options) as slide:
        shape, step = slide.shape, open_working_image(slide, mpp=model.card.mpp).grid.step_px
    (row, *down), (col, *right) = (
        places_of(n, s, model.config.window_px) for n, s in zip(shape, step, strict=True)
    )
    readings = []
    for name, rows, cols in zip(("first", "second"), down, right, strict=True):
        (folder / name).mkdir()
        made = cut(path, folder / name / path.name, Window.from_slices(rows, cols))
        with atlas_wsi.open_slide(made, **options) as slide:
            readings.append(Reading(slide, model_name))
    a, b = readings
    edge = int(max(step) > 1)
    seen = a.pixels[row:, col:]
    is_other = (seen != b.pixels[: seen.shape[0], : seen.shape[1]]).any(axis=2)
    n_input = int(is_other[edge : len(is_other) - edge, edge : is_other.shape[1] - edge].sum())
    n_alone = n_windows = 0
    for box in a.alone:
        other = shifted(box, row // CELL_PX, col // CELL_PX)
        reach = a.pixels_of(box)
        if other not in b.alone or shifted(reach, row, col) != b.pixels_of(other):
            continue
        if not is_other[shifted(reach, row, col).slices].any():
            n_windows += 1
            n_alone += change(a.alone[box], b.alone[other])[1]
    ours = a.map[:, row // CELL_PX :, col // CELL_PX :]
    n, _, n_class, most = change(ours, b.map[:, : ours.shape[1], : ours.shape[2]])
    columns = (n_input, n_windows, n_alone, n, f"{n_class / max(1, n):.1%}", f"{most:.2g}")
    return [f"`{path.name}`", f"{row}, {col}", *map(str, columns)]


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenes", nargs="+", type=Path)
    parser.add_argument("--model", default="landcover-rgb")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| scene | offset, px | input | windows | alone | cells | class | largest change |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    n_wrong = 0
    for path in args.scenes:
        with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            row = compare(path, Path(name), args.model)
        n_wrong += int(row[2]) + int(row[4])
        print(f"| {' | '.join(row)} |", flush=True)
    raise SystemExit(n_wrong > 0)


if __name__ == "__main__":
    main()

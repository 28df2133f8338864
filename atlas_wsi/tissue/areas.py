"""Areas that a person or another program drew: GeoJSON polygons, tiles and mask pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from atlas_wsi.errors import DatasetError
from atlas_wsi.files import BoundedFile, read_json
from atlas_wsi.grid import Grid
from atlas_wsi.tissue.hdf5_tiles import SUFFIXES as TILES
from atlas_wsi.tissue.hdf5_tiles import tiles_to_mask
from atlas_wsi.tissue.mask import TissueMask
from atlas_wsi.tissue.shapes import crs_of, shapes_of, to_level0

if TYPE_CHECKING:
    import os

    import shapely

    from atlas_wsi.slides.slide import Slide

MAX_MASK_PIXELS = 64 * 10**6


def read_areas(path: str | os.PathLike[str], slide: Slide) -> list[shapely.Polygon]:
    """Read the polygons of a GeoJSON file, in level-0 pixels `(x, y)`."""
    path = Path(path)
    data = read_json(path, "GeoJSON")
    return to_level0(shapes_of(data, path), crs_of(data, slide, path), slide, path)[0]


def read_tissue(path: str | os.PathLike[str], slide: Slide) -> TissueMask:
    """Read a tissue mask from another tool.

    Parameters
    ----------
    path
        An image of the whole slide, black where there is no tissue; GeoJSON polygons; or HDF5 tiles
        of CLAM, TRIDENT, WSInfer or STAMP.
    slide
        The slide that it belongs to.

    Returns
    -------
    TissueMask
        Where the tissue is.

    Raises
    ------
    DatasetError
        If the file cannot be read or does not fit the slide.
    """
    path = Path(path)
    if path.suffix.lower() in (".json", ".geojson", *TILES):
        own = slide.require_mpp()
        step = tuple(max(1.0, 4.0 / m, n / 4096) for m, n in zip(own, slide.shape, strict=True))
        grid = Grid.over(slide.shape, (step[0], step[1]))
        if path.suffix.lower() in TILES:
            return tiles_to_mask(path, slide, grid)
        whole = TissueMask(mask=np.ones(grid.shape, bool), grid=grid, method=f"file {path.name}")
        return whole.within(read_areas(path, slide))
    mask = _read_picture(path)
    rows, cols = slide.shape
    stretch = (mask.shape[0] / mask.shape[1]) / (rows / cols)
    if abs(stretch - 1) > 0.02 + 1 / min(mask.shape):
        raise DatasetError(
            f"The mask {path} has {mask.shape[1]} x {mask.shape[0]} pixels, which is not the form "
            f"of {slide.name} ({cols} x {rows}).",
            hint="A mask covers the whole slide.",
        )
    grid = Grid(shape=mask.shape, step_px=(rows / mask.shape[0], cols / mask.shape[1]))
    return TissueMask(mask=mask, grid=grid, method=f"file {path.name}", is_drawn=True)


def _read_picture(path: Path) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    from PIL import Image

    try:
        with BoundedFile(path) as file, Image.open(file) as image:
            if image.width * image.height > MAX_MASK_PIXELS:
                raise DatasetError(
                    f"The mask {path} has {image.width} x {image.height} pixels.",
                    hint=f"At most {MAX_MASK_PIXELS // 10**6} Mpx; 4 um per pixel are enough.",
                )
            return np.asarray(image.convert("L")) > 0
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{path} is not a readable image: {error}.") from error

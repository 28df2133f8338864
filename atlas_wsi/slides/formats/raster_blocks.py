"""What a few blocks and the tables of a raster show: absent blocks, and alpha that is none."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tifffile
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError

from atlas_wsi.slides.tiff_check import TIFF_ERRORS

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rasterio.io import DatasetReader

GDAL_ERRORS = (RasterioError, CPLE_BaseError)
_ALPHA_BLOCKS = 16


def stored_blocks(source: str) -> tuple[tuple[int, int], NDArray[np.int64]] | None:
    """Return the size of a block and, for each, how many are stored above and left of it.

    None if the file holds all of its blocks, or is not on a disk.
    """
    if not Path(source).is_file():
        return None
    try:
        with tifffile.TiffFile(source, _multifile=False) as tif:
            page = tif.pages.first
            is_stored = np.array(page.databytecounts) > 0
            rows, cols = (
                (page.tilelength, page.tilewidth)
                if page.is_tiled
                else (page.rowsperstrip, page.imagewidth)
            )
            grid = -(-page.imagelength // rows), -(-page.imagewidth // cols)
            if is_stored.all() or is_stored.size % (grid[0] * grid[1]):
                return None
    except TIFF_ERRORS:
        return None
    stored = is_stored.reshape(-1, *grid).any(axis=0)
    n_before = np.zeros((grid[0] + 1, grid[1] + 1), np.int64)
    n_before[1:, 1:] = stored.cumsum(axis=0).cumsum(axis=1)
    return (rows, cols), n_before


def is_opacity(dataset: DatasetReader, index: int) -> bool:
    """Tell whether an alpha band is one: GDAL calls any fourth band of bytes so.

    Opacity is 0 or full nearly everywhere, near infrared almost never; a few blocks show it.
    """
    full = np.iinfo(dataset.dtypes[index - 1]).max if "int" in dataset.dtypes[index - 1] else 1
    blocks = [window for _, window in itertools.islice(dataset.block_windows(index), 2**16)]
    between = opaque = 0
    for window in blocks[:: max(1, len(blocks) // _ALPHA_BLOCKS)]:
        try:
            values = dataset.read(index, window=window)
        except GDAL_ERRORS:
            continue
        between += int(((values != 0) & (values != full)).sum())
        opaque += int((values == full).sum())
    return between <= opaque

"""Aperio slides of JPEG and JPEG 2000 tiles, decoded straight into RGB.

Everything unusual (other compressions, missing tiles, a tile that fails to decode) is left to
OpenSlide, whose pixels these are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile

from atlas_wsi.errors import UnreadableSlideError
from atlas_wsi.slides.backend import Backend
from atlas_wsi.slides.formats.openslide import OpenSlideBackend, open_openslide
from atlas_wsi.slides.formats.segments import FileBytes, PageReader
from atlas_wsi.slides.registry import SlideFormat

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from atlas_wsi.grid import Box

_JPEG, _JPEG_2000_RGB = 7, 33005  # 33003 is YCbCr that the codec does not turn into RGB
_RGB, _YCBCR = 2, 6


class JpegTileBackend(Backend):
    """An Aperio slide whose tiles are decoded without OpenSlide."""

    def __init__(
        self, slow: OpenSlideBackend, pages: list[PageReader | None], file: FileBytes
    ) -> None:
        self.meta = slow.meta
        self._slow = slow
        self._pages = pages
        self._file = file

    def read_block(self, level: int, box: Box) -> NDArray[Any]:
        """Read uint8 pixels `(rows, cols, 3)`."""
        page = self._pages[level]
        if page is not None:
            try:
                return page.read(box)
            except UnreadableSlideError:
                pass  # OpenSlide reports whether the tile is damaged or only unusual
        return self._slow.read_block(level, box)

    def read_valid(self, level: int, box: Box, channels: Sequence[int] = ()) -> NDArray[Any]:
        """Tell which pixels were scanned."""
        return self._slow.read_valid(level, box, channels)

    def read_associated(self, name: str) -> NDArray[Any]:
        """Read an associated image."""
        return self._slow.read_associated(name)

    def close(self) -> None:
        """Give the file back to the system."""
        self._file.close()
        self._slow.close()


def open_aperio(path: Path) -> Backend:
    """Open an Aperio slide, by its tiles where they are plain."""
    slow = open_openslide(path)
    levels = slow.meta.levels
    file = FileBytes(path)
    with tifffile.TiffFile(path) as tif:
        found = {
            (page.imagelength, page.imagewidth, page.tilelength, page.tilewidth): page
            for page in tif.pages
            if isinstance(page, tifffile.TiffPage) and is_plain(page)
        }
        pages = [found.get((*level.shape, *level.tile)) for level in levels]
        readers = [None if page is None else PageReader(page, file) for page in pages]
        readers = [page if page is not None and page.is_whole else None for page in readers]
    if not any(readers):
        file.close()
        return slow
    return JpegTileBackend(slow, readers, file)


def is_plain(page: tifffile.TiffPage) -> bool:
    """Whether a page's tiles mean to our decoder what they mean to OpenSlide's."""
    if not page.is_tiled or page.dtype != np.uint8 or page.planarconfig != 1:
        return False
    if page.samplesperpixel != 3 or page.extrasamples:
        return False
    if page.compression == _JPEG:
        # OpenSlide trusts the tag, but RGB in a JFIF stream is YCbCr to everybody else
        return page.photometric == _YCBCR or (page.photometric == _RGB and not page.is_jfif)
    return page.compression == _JPEG_2000_RGB and page.photometric == _RGB


FORMATS = (
    SlideFormat(
        name="aperio",
        title="Aperio SVS",
        suffixes=(".svs",),
        rank=10,
        is_guess=True,  # one with several focal planes is read as any other TIFF
        recognizes=lambda source: source.is_tiff and source.vendor == "aperio",
        open=lambda source: open_aperio(source.local),
    ),
)

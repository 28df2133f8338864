"""Checks of a TIFF file's directories before anything is decoded."""

from __future__ import annotations

import contextlib
import math
import struct
from typing import TYPE_CHECKING

import numpy as np
import tifffile

from atlas_wsi.errors import UnreadableSlideError

if TYPE_CHECKING:
    from pathlib import Path
    from typing import IO

    from numpy.typing import NDArray

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
TIFF_ERRORS = (tifffile.TiffFileError, TypeError, ValueError, IndexError, struct.error)
# Raised by arithmetic with tags of impossible types, counts and sizes
DAMAGED = (
    *TIFF_ERRORS,
    ArithmeticError,
    AttributeError,
    AssertionError,
    KeyError,
    SyntaxError,
    RuntimeError,
)
_MAX_TILE_PX = 2**26
_MAX_TILE_BYTES = 2**28
_MAX_SIDE_PX = 2**23


def check_directories(file: Path | IO[bytes], path: str, *, allow_truncated: bool = False) -> None:
    """Refuse impossible sizes before a reader allocates memory for them, and files cut short."""
    try:
        tif = tifffile.TiffFile(file, _multifile=False)
    except TIFF_ERRORS:
        return  # its reader says better what is wrong
    with tif:
        directory_beyond(tif)
        size = tif.filehandle.size
        most = math.inf if allow_truncated else size
        blocks = lost = end = 0
        for n in range(len(tif.pages)):
            try:
                page = tif.pages[n]
                directories = [page, *(page.pages or ())]  # with the levels below it
            except DAMAGED:
                continue  # the next may be worse
            if any(below.subifds for below in directories[1:]):
                raise UnreadableSlideError(f"{path} has levels within levels (directory {n}).")
            for directory in directories:
                ends = _check_directory(path, directory, n, most)
                blocks, lost = blocks + len(ends), lost + int((ends > size).sum())
                end = max(end, int(ends.max(initial=0)))
        if lost and not allow_truncated:
            raise UnreadableSlideError(
                f"{path} is truncated: {lost} of its {blocks} blocks lie behind the end of the file; "
                f"{end - size:,} bytes of {end:,} are missing.",
                hint="Copy or download it again, or read the rest: --allow-truncated.",
            )


def _check_directory(
    path: str, page: tifffile.TiffPage | tifffile.TiffFrame, n: int, most: float
) -> NDArray[np.float64]:
    """Refuse impossible sizes of a directory; return where its tiles or strips end."""
    key = page.keyframe
    if key is None:
        return np.empty(0)
    px = int(key.tilelength) * int(key.tilewidth)
    stored = max(page.databytecounts, default=0)
    is_image = all(0 < side < _MAX_SIDE_PX for side in (key.imagelength, key.imagewidth))
    if key.is_tiled:
        most = min(most, _MAX_TILE_BYTES)  # OpenSlide ends the process if it has no room
    if not is_image or px > _MAX_TILE_PX or stored > most:
        raise UnreadableSlideError(
            f"{path} has a directory that makes no sense: {key.imagelength} x {key.imagewidth} px "
            f"(a side may have {_MAX_SIDE_PX:,}) in tiles of {key.tilelength} x {key.tilewidth} (at "
            f"most {_MAX_TILE_PX >> 20} Mpx), the largest of {stored} bytes (directory {n}).",
            hint="The file is damaged: copy or download it again.",
        )
    ends: NDArray[np.float64] = np.add(page.dataoffsets, page.databytecounts, dtype=np.float64)
    return ends


def directory_beyond(tif: tifffile.TiffFile) -> int | None:
    """Return the offset of a directory behind the end of the file, if there is one; refuse a loop."""
    file, layout = tif.filehandle, tif.tiff
    where = layout.offsetsize  # in the header, 4 in classic TIFF and 8 in BigTIFF
    found: set[int] = set()
    with contextlib.suppress(struct.error):  # a directory that is cut short is the last
        while True:
            file.seek(where)
            (following,) = struct.unpack(layout.offsetformat, file.read(layout.offsetsize))
            if following >= file.size:
                return int(following)
            if following in found:
                raise UnreadableSlideError(
                    f"{tif.filename} lists its directory at byte {following} again and again.",
                    hint="The file is damaged: copy or download it again.",
                )
            if not following:
                break
            found.add(following)
            file.seek(following)
            (n_tags,) = struct.unpack(layout.tagnoformat, file.read(layout.tagnosize))
            where = following + layout.tagnosize + n_tags * layout.tagsize
    return None

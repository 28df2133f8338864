"""Tiles and strips of one TIFF page, decoded on their own and from any thread."""

from __future__ import annotations

import math
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from atlas_wsi.errors import UnreadableSlideError, UnsupportedFormatError
from atlas_wsi.grid import Box
from atlas_wsi.slides.formats.picture_headers import LERC_MAGIC, picture_size
from atlas_wsi.slides.paste import paste, relative

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from tifffile import TiffFrame, TiffPage

_COLOR = (2, 6)  # RGB, YCbCr
_GDAL_NODATA = 42113
_BAND_BYTES = 16 * 2**20
_LARGEST_SEGMENT_BYTES = 2**28
_SMALL = 2**22  # samples that need no check against the tile
# Their decoders make room for the size that the data say: JPEG, JPEG XR, JPEG 2000, LERC, PNG,
# WebP, JPEG XL. Those of others stop at the size of the tile.
_LERC = 34887
_PICTURES = (
    *(6, 7, 33007, 34892, 22610, 34934, 33003, 33004, 33005, 34712, _LERC, 34933, 34927),
    *(50001, 50002, 52546),
)
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def white_of(dtype: np.dtype[Any]) -> int:
    """Return the brightest value of images that are shown as they are."""
    return {"uint8": 255, "uint16": 65535}.get(dtype.name, 0)


_MAX_BLOCK_BYTES = 2**28  # of a tile or strip as stored


class Bytes(Protocol):
    """Random reads from any thread: of a file here, or of one on a server."""

    @property
    def path(self) -> Path | str:
        """Where the bytes are, as it may be shown."""

    def read(self, offset: int, n_bytes: int) -> bytes:
        """Read bytes, all of them."""

    def close(self) -> None:
        """Give the file back to the system."""


class FileBytes:
    """Random reads of a file without a position that threads would share."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._lock = threading.Lock()
        self._finalizer = weakref.finalize(self, os.close, self._descriptor)

    def read(self, offset: int, n_bytes: int) -> bytes:
        """Read bytes."""
        if not self._finalizer.alive:
            raise ValueError(f"{self.path} is closed.")
        # the system makes room for as much as is asked for, which a damaged file says
        beyond = offset + n_bytes - os.fstat(self._descriptor).st_size
        if offset < 0 or n_bytes < 0 or beyond > 0:
            raise UnreadableSlideError(
                f"{self.path} ends {max(beyond, 0)} bytes before a block of {n_bytes} bytes at byte "
                f"{offset} does: the file is truncated or damaged."
            )
        if hasattr(os, "pread"):
            found = os.pread(self._descriptor, n_bytes, offset)
        else:
            with self._lock:
                os.lseek(self._descriptor, offset, os.SEEK_SET)
                found = os.read(self._descriptor, n_bytes)
        if len(found) < n_bytes:
            raise UnreadableSlideError(f"{self.path} became shorter while it was read.")
        return found

    def close(self) -> None:
        """Give the file back to the system."""
        self._finalizer()


class PageReader:
    """Reads boxes of one page of a TIFF file."""

    def __init__(self, page: TiffPage | TiffFrame, file: Bytes) -> None:
        key = page.keyframe
        assert key is not None
        if key.dtype is None or key.dtype.kind not in "uifb" or key.imagedepth > 1:
            raise UnsupportedFormatError(
                f"{file.path}: samples of type {key.dtype} in {key.imagedepth} layers are not read."
            )
        self._file = file
        self._check_sizes(key, page)
        self._decode = key.decode
        self._tables = page.jpegtables
        self._header = key.jpegheader
        self._offsets = page.dataoffsets
        self._counts = page.databytecounts
        self.dtype = np.dtype(key.dtype)
        self.shape = (key.imagelength, key.imagewidth)
        self._planes, _, _, _, self._contig = key.shaped
        self.n_samples = self._planes * self._contig
        self._blank = key.nodata
        if key.photometric in _COLOR and _GDAL_NODATA not in key.tags:
            self._blank = white_of(self.dtype)
        self._is_picture = int(key.compression) in _PICTURES
        self._is_lerc = int(key.compression) == _LERC
        self._is_tiled = key.is_tiled
        self._raw_dtype: np.dtype[Any] | None = None
        if key.is_final and not key.is_tiled:
            self._raw_dtype = self.dtype.newbyteorder(key.parent.byteorder)
        self._segment = self._segment_shape(key)
        self._grid = (
            math.ceil(self.shape[0] / self._segment[0]),
            math.ceil(self.shape[1] / self._segment[1]),
        )
        n_bytes = math.prod(self.block_shape) * self.n_samples * self.dtype.itemsize
        if n_bytes > _LARGEST_SEGMENT_BYTES:
            raise UnsupportedFormatError(
                f"{file.path} has blocks of {n_bytes / 2**20:,.0f} MiB each, more than "
                f"{_LARGEST_SEGMENT_BYTES / 2**20:,.0f} MiB: it is damaged, or must be converted.",
                hint="vips tiffsave IN OUT --tile --pyramid --compression jpeg",
            )
        try:
            self._decode(None, 0)
        except ValueError as error:
            raise UnsupportedFormatError(f"{file.path} cannot be decoded: {error}.") from error

    def _check_sizes(self, key: TiffPage, page: TiffPage | TiffFrame) -> None:
        """Refuse what tags of a damaged file may say: they may have any type and value."""
        said: dict[str, Any] = {"length": key.imagelength, "width": key.imagewidth}
        said["number of samples"] = key.samplesperpixel
        if not key.is_tiled:
            said["rows a strip"] = key.rowsperstrip
        if key.is_tiled:
            said |= {"tile length": key.tilelength, "tile width": key.tilewidth}
        if page.dataoffsets:
            said["first offset"] = page.dataoffsets[0]
        for name, value in said.items():
            least = int(name == "number of samples")
            most = {"first offset": 2**63, "rows a strip": 2**32}.get(name, 2**31)
            if not isinstance(value, int) or not least <= value < most:
                raise UnreadableSlideError(
                    f"{self._file.path} has the {name} {value!r}, which makes no sense.",
                    hint="The file is damaged: copy or download it again.",
                )

    def _segment_shape(self, key: TiffPage) -> tuple[int, int]:
        if key.is_tiled:
            return key.tilelength, key.tilewidth
        rows = min(key.rowsperstrip, key.imagelength)
        n_bytes = rows * key.imagewidth * self._contig * self.dtype.itemsize
        if self._raw_dtype is None and n_bytes > _LARGEST_SEGMENT_BYTES:
            raise UnsupportedFormatError(
                f"{self._file.path} stores {rows} x {key.imagewidth} pixels as one compressed "
                f"strip, which must be decoded whole.",
                hint="Convert it once: vips tiffsave IN OUT --tile --pyramid --compression jpeg.",
            )
        return rows, key.imagewidth

    @property
    def is_whole(self) -> bool:
        """Whether the file holds every tile; scanners leave out empty ones."""
        return all(self._counts)

    @property
    def block_shape(self) -> tuple[int, int]:
        """Rows and columns worth reading at once: a tile, or a band of strips of some 16 MB."""
        rows, cols = self._segment
        if self._is_tiled or (self._raw_dtype is None and rows >= 128):
            return rows, cols
        row_bytes = self.shape[1] * self.n_samples * self.dtype.itemsize
        wanted = min(512, max(1, _BAND_BYTES // row_bytes))
        if self._raw_dtype is not None:
            return min(wanted, self.shape[0]), cols
        return rows * max(1, wanted // rows), cols

    def read(self, box: Box) -> NDArray[Any]:
        """Read `(rows, cols, samples)` in native byte order."""
        if self._raw_dtype is not None:
            return self._read_raw(box)
        segments = list(self._segments_in(box))
        if len(segments) == 1 and self._planes == 1:
            pixels, place = self._read_segment(segments[0])
            return np.ascontiguousarray(pixels[relative(box, place).slices])
        result = np.empty((box.rows, box.cols, self.n_samples), self.dtype)
        per_plane = self._grid[0] * self._grid[1]
        for plane in range(self._planes):
            target = result[..., plane * self._contig : (plane + 1) * self._contig]
            for index in segments:
                pixels, place = self._read_segment(plane * per_plane + index)
                paste(pixels, place, target, box)
        return result

    def _segments_in(self, box: Box) -> Iterator[int]:
        rows, cols = self._segment
        for row in range(box.row // rows, -(-box.row_end // rows)):
            for col in range(box.col // cols, -(-box.col_end // cols)):
                yield row * self._grid[1] + col

    def _read_segment(self, index: int) -> tuple[NDArray[Any], Box]:
        """Return the pixels of a tile or strip and where they lie on the page."""
        row, col = divmod(index % (self._grid[0] * self._grid[1]), self._grid[1])
        rows, cols = self._segment
        place = Box(row=row * rows, col=col * cols, rows=rows, cols=cols)
        n_bytes = self._stored(index)
        if n_bytes == 0:
            inside = place.clip(self.shape)
            blank = np.full((inside.rows, inside.cols, self._contig), self._blank, self.dtype)
            return blank, inside
        encoded = self._file.read(self._offsets[index], n_bytes)
        try:
            encoded = self._unpacked(encoded)
            self._check_picture(encoded)
            decoded, _, _ = self._decode(
                encoded, index, jpegtables=self._tables, jpegheader=self._header
            )
        except Exception as error:
            raise UnreadableSlideError(
                f"{self._file.path}: the block at row {place.row}, column {place.col} cannot be "
                f"decoded: {error}."
            ) from error
        assert decoded is not None
        pixels = decoded[0]
        return pixels, Box(row=place.row, col=place.col, rows=pixels.shape[0], cols=pixels.shape[1])

    def _unpacked(self, encoded: bytes) -> bytes:
        """Undo the second compression that tiles in LERC may have."""
        if not self._is_lerc or encoded.startswith(LERC_MAGIC):
            return encoded
        from atlas_wsi.bounded import decode_bytes, most_bytes

        codec = "zstd" if encoded.startswith(_ZSTD_MAGIC) else "zlib"
        n_bytes = math.prod(self._segment) * self._contig * self.dtype.itemsize
        return decode_bytes(codec, {}, encoded, most_bytes(n_bytes))

    def _check_picture(self, encoded: bytes) -> None:
        """Refuse a picture larger than its tile before a decoder makes room for it."""
        said = picture_size((self._header or b"") + encoded) if self._is_picture else None
        expected = *self._segment, self._contig
        if said is None:
            return
        is_beyond = self._is_tiled and (said[0] > expected[0] or said[1] > expected[1])
        if is_beyond or math.prod(said) > 4 * max(math.prod(expected), _SMALL):
            sizes = (" x ".join(map(str, size)) for size in (said, expected))
            raise ValueError("its picture has {} samples instead of {}".format(*sizes))

    def _stored(self, index: int) -> int:
        """Return the number of bytes of a tile or strip; the tags of a damaged file may say anything."""
        if index >= min(len(self._counts), len(self._offsets)):
            raise UnreadableSlideError(
                f"{self._file.path} does not say where its block {index} lies.",
                hint="The file is damaged: copy or download it again.",
            )
        n_bytes: Any = self._counts[index]
        offset: Any = self._offsets[index]
        if not (isinstance(n_bytes, int) and isinstance(offset, int)) or not (
            0 <= n_bytes <= _MAX_BLOCK_BYTES and 0 <= offset < 2**63
        ):
            raise UnreadableSlideError(
                f"{self._file.path}: block {index} is said to have {n_bytes} bytes at {offset}.",
                hint="The file is damaged: copy or download it again.",
            )
        return n_bytes

    def _read_raw(self, box: Box) -> NDArray[Any]:
        """Read rows of a page that is stored as one uncompressed array."""
        assert self._raw_dtype is not None
        row_samples = self.shape[1] * self._contig
        row_bytes = row_samples * self._raw_dtype.itemsize
        planes = []
        for plane in range(self._planes):
            offset = self._offsets[0] + (plane * self.shape[0] + box.row) * row_bytes
            stored = self._file.read(offset, box.rows * row_bytes)
            rows = np.frombuffer(stored, self._raw_dtype).reshape(box.rows, -1, self._contig)
            planes.append(rows[:, box.col : box.col_end])
        return np.concatenate(planes, axis=2, dtype=self.dtype)

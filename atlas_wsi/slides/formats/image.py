"""Plain images: PNG, JPEG, BMP and WebP, decoded whole, so up to a stated size only."""

from __future__ import annotations

import contextlib
import struct
import threading
import warnings
from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np
from PIL import Image, UnidentifiedImageError

from atlas_wsi.errors import UnreadableSlideError, UnsupportedFormatError
from atlas_wsi.files import BoundedFile
from atlas_wsi.slides import radiometry, resolution
from atlas_wsi.slides.backend import Backend, Level, SlideMeta
from atlas_wsi.slides.registry import SlideFormat

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from atlas_wsi.grid import Box

MAX_PIXELS = 178_956_970
"""Largest image that is read, some 13,000 x 13,000 pixels; also where Pillow stops."""

_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
_TILE_PX = 1024
_ORIENTATION_TAG = 274
_GRAY, _GRAY_ALPHA, _RGB, _RGBA = 1, 2, 3, 4
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, struct.error)
_open_lock = threading.Lock()


class ImageBackend(Backend):
    """One plain image; it is decoded when the first pixel is asked for, and kept."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._samples: NDArray[Any] | None = None
        deep = _deep_png_mode(path)
        self._is_16_bit = bool(deep)
        with _opened(path) as image:
            self._mode = _mode_for(image, deep)
            self.meta = self._read_meta(image)

    def read_block(self, level: int, box: Box) -> NDArray[Any]:  # noqa: ARG002
        """Read pixels `(rows, cols, channels)` without an alpha channel."""
        return self._decoded()[box.slices][..., : self.meta.n_channels].copy()

    def read_valid(self, level: int, box: Box, channels: Sequence[int] = ()) -> NDArray[np.bool_]:
        """Tell which pixels are not fully transparent."""
        if not self.meta.has_mask:
            return super().read_valid(level, box, channels)
        return np.asarray(self._decoded()[box.slices][..., -1] > 0)

    def close(self) -> None:
        """Give the memory back to the system."""
        with self._lock:
            self._samples = None

    def _decoded(self) -> NDArray[Any]:
        with self._lock:
            if self._samples is None:
                self._samples = self._decode()
            return self._samples

    def _decode(self) -> NDArray[Any]:
        try:
            if self._is_16_bit:  # Pillow would cut colors to 8 bits
                samples = np.asarray(imagecodecs.png_decode(self._path.read_bytes()))
            else:
                with _opened(self._path) as image:
                    samples = np.asarray(image.convert(self._mode))
        except (*_DECODER_ERRORS, imagecodecs.PngError) as error:
            raise UnreadableSlideError(
                f"{self._path} cannot be decoded: {error}.",
                hint="The file may be truncated: compare its size with the original.",
            ) from error
        return samples if samples.ndim == 3 else samples[..., None]

    def _read_meta(self, image: Image.Image) -> SlideMeta:
        n_stored = len(Image.new(self._mode, (1, 1)).getbands())
        has_alpha = n_stored in {_GRAY_ALPHA, _RGBA}
        n_channels = n_stored - has_alpha
        is_color = n_channels == _RGB
        dtype, white = ("uint16", 65_535.0) if self._is_16_bit else ("uint8", 255.0)
        shape = image.height, image.width
        notes = []
        if "exif" in image.info and image.getexif().get(_ORIENTATION_TAG, 1) != 1:
            notes.append("The EXIF orientation is ignored: rows and columns are as stored.")
        if getattr(image, "n_frames", 1) > 1:
            notes.append(f"Of {getattr(image, 'n_frames', 1)} frames the first is read.")
        if image.mode == "CMYK":
            notes.append("CMYK was converted to RGB without its color profile.")
        mpp = _mpp(image)
        profile = image.info.get("icc_profile")
        return SlideMeta(
            format=str(image.format).lower(),
            backend="image",
            levels=(
                Level(
                    shape=shape,
                    downsample=(1.0, 1.0),
                    tile=(min(_TILE_PX, shape[0]), min(_TILE_PX, shape[1])),
                ),
            ),
            n_channels=n_channels,
            dtype=dtype,
            channel_names=("red", "green", "blue") if is_color else ("gray",),
            background=(white if is_color else 0.0,) * n_channels,
            mpp=mpp,
            mpp_source="image resolution" if mpp else "",
            icc_profile=profile if isinstance(profile, bytes) else None,
            samples=radiometry.full_range(np.dtype(dtype), n_channels),
            has_mask=has_alpha,
            properties={"mode": image.mode},
            warnings=tuple(notes),
        )


def open_image(path: Path) -> ImageBackend:
    """Open a plain image."""
    try:
        return ImageBackend(path)
    except UnidentifiedImageError as error:
        raise UnsupportedFormatError(f"{path} is no PNG, JPEG, BMP or WebP image.") from error
    except Image.DecompressionBombError as error:
        raise UnsupportedFormatError(
            f"{path} is too large for a plain image, which must be decoded whole: {error}",
            hint=f"Make a pyramid of it: vips tiffsave {path.name} {path.stem}.tif --tile "
            "--pyramid --compression jpeg, or gdal_translate -of COG.",
        ) from error
    except _DECODER_ERRORS as error:
        raise UnreadableSlideError(f"{path} cannot be opened as an image: {error}.") from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open without decoding; filters of warnings are shared by all threads."""
    with BoundedFile(path) as file:
        with _open_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file, formats=_FORMATS)
        with image:
            if image.width * image.height > MAX_PIXELS:  # where Pillow's own limit was lifted
                raise Image.DecompressionBombError(
                    f"{image.height} x {image.width} pixels, the limit is {MAX_PIXELS}."
                )
            yield image


def _mode_for(image: Image.Image, deep: str) -> str:
    """Return the mode whose samples are kept: gray or RGB, with or without alpha."""
    mode = deep or ("L" if image.mode in {"1", "L", "LA"} else "RGB")
    is_transparent = "A" in image.getbands() or "transparency" in image.info
    return mode.removesuffix("A") + ("A" if is_transparent else "")


def _deep_png_mode(path: Path) -> str:
    """Return what Pillow would call the pixels of a PNG of 16 bits; empty for other files."""
    with path.open("rb") as file:
        head = file.read(26)
    if not head.startswith(b"\x89PNG\r\n\x1a\n") or head[24:25] != b"\x10":
        return ""
    return {0: "L", 2: "RGB", 4: "LA", 6: "RGBA"}.get(head[25], "")


def _mpp(image: Image.Image) -> tuple[float, float] | None:
    """Return the resolution that the header states, unless it is one that editors write."""
    dpi = image.info.get("dpi")
    if not isinstance(dpi, tuple) or len(dpi) != 2:
        return None
    x, y = (float(value) for value in dpi)
    return resolution.from_tiff(y, x, "inch")[0]


FORMATS = (
    SlideFormat(
        name="image",
        title="PNG, JPEG, BMP, WebP",
        suffixes=(),  # beside slides these are thumbnails: a folder search leaves them out
        rank=90,
        is_guess=True,
        recognizes=lambda source: source.is_local_file and not (source.is_tiff or source.is_zip),
        open=lambda source: open_image(source.local),
    ),
)

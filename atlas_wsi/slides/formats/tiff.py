"""TIFF files that tifffile reads: OME-TIFF, pyramids of any origin, BigTIFF, plain pages."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile

from atlas_wsi.errors import UnreadableSlideError, UnsupportedFormatError
from atlas_wsi.slides import resolution
from atlas_wsi.slides.backend import Backend, Level, SlideMeta
from atlas_wsi.slides.formats import omexml
from atlas_wsi.slides.formats.segments import FileBytes, PageReader, white_of
from atlas_wsi.slides.pyramid import true_downsample
from atlas_wsi.slides.registry import SlideFormat
from atlas_wsi.slides.tiff_check import TIFF_MAGIC

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from atlas_wsi.grid import Box
    from atlas_wsi.slides.formats.segments import Bytes
    from atlas_wsi.slides.remote import RemoteBytes

_MIN_IS_WHITE, _RGB, _PALETTE, _YCBCR = 0, 2, 3, 6
_ALPHA = (1, 2)
_RESOLUTION_UNITS = {2: "inch", 3: "centimeter"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Samples:
    """How stored samples become channels."""

    n_stored: int
    """Samples of a pixel in the file."""
    dtype: np.dtype[Any]
    """Sample type after conversion."""
    is_inverted: bool
    """Whether 0 is white."""
    alpha: int | None
    """Which sample is the opacity."""
    palette: NDArray[np.uint8] | None
    """Colors `(entries, 3)` that samples point into."""

    @property
    def n_channels(self) -> int:
        """Channels after conversion."""
        if self.palette is not None:
            return 3
        return self.n_stored - (self.alpha is not None)

    def convert(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Turn stored samples into channels."""
        if self.palette is not None:
            return np.asarray(self.palette[stored[..., 0]])
        if self.alpha is not None:
            stored = np.delete(stored, self.alpha, axis=-1)
        if stored.dtype == bool:
            stored = stored.astype(np.uint8) * np.uint8(255)
        if self.is_inverted:
            stored = np.iinfo(stored.dtype).max - stored
        return stored


class TiffBackend(Backend):
    """One image of a TIFF file with its reduced copies."""

    def __init__(
        self, path: Path | str, tif: tifffile.TiffFile, file: RemoteBytes | None = None
    ) -> None:
        self._path = path
        self._remote = file
        self._files: dict[Path, Bytes] = {}
        index, series = max(enumerate(tif.series), key=lambda entry: _extent(entry[1]))
        stored = [series, *_reduced_copies(series, tif.series)]
        levels = [level for part in stored for level in part.levels]
        warnings: list[str] = []
        self._pages = [
            [self._reader(page) for page in _channel_pages(level, warnings)] for level in levels
        ]
        self._samples = _samples_of(series.keyframe, sum(p.n_samples for p in self._pages[0]))
        self._meta = self._read_meta(tif, index, series, warnings)

    @property
    def meta(self) -> SlideMeta:
        """Metadata of the file."""
        return self._meta

    def read_block(self, level: int, box: Box) -> NDArray[Any]:
        """Read pixels of a stored level.

        Returns: `(rows, cols, channels)`.
        """
        return self._samples.convert(self._read_stored(level, box))

    def read_valid(self, level: int, box: Box) -> NDArray[np.bool_]:
        """Tell which pixels are not transparent.

        Returns: bool `(rows, cols)`.
        """
        if self._samples.alpha is None:
            return super().read_valid(level, box)
        return np.asarray(self._read_stored(level, box)[..., self._samples.alpha] > 0)

    def read_associated(self, name: str) -> NDArray[Any]:
        """Read an associated image; these files have none."""
        raise ValueError(f"{self._path} has no associated image {name!r}.")

    def close(self) -> None:
        """Give the file back to the system."""
        for file in self._files.values():
            file.close()
        if self._remote is not None:
            self._remote.close()

    def _read_stored(self, level: int, box: Box) -> NDArray[Any]:
        parts = [page.read(box) for page in self._pages[level]]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

    def _reader(self, page: tifffile.TiffPage | tifffile.TiffFrame) -> PageReader:
        if self._remote is not None:
            return PageReader(page, self._remote)
        path = Path(page.parent.filehandle.path)  # a set of OME-TIFF files is one series
        if path not in self._files:
            self._files[path] = FileBytes(path)
        return PageReader(page, self._files[path])

    def _read_meta(
        self,
        tif: tifffile.TiffFile,
        index: int,
        series: tifffile.TiffPageSeries,
        warnings: list[str],
    ) -> SlideMeta:
        page, samples = series.keyframe, self._samples
        ome = omexml.read_image(tif.ome_metadata, index) if tif.is_ome else omexml.OmeImage()
        mpp, source = ome.mpp, "OME PhysicalSize"
        power, vendor = ome.magnification, ome.vendor
        if tif.is_svs:
            (mpp, source), power = resolution.from_aperio(page.description)
            vendor = "aperio"
            warnings.extend(resolution.contradictions(mpp, power or 0))
        elif mpp is None:
            x, y = page.resolution
            unit = _RESOLUTION_UNITS.get(int(page.resolutionunit or 1), "")
            mpp, source = resolution.from_tiff(y, x, unit)
        is_color = samples.n_channels == 3 and (
            page.photometric in {_RGB, _YCBCR} or samples.palette is not None
        )
        names: tuple[str, ...] = ("red", "green", "blue")
        if not is_color:
            names = tuple(f"channel {number}" for number in range(samples.n_channels))
            if len(ome.channel_names) == samples.n_channels:
                names = ome.channel_names
        profile = page.tags.valueof(34675)
        return SlideMeta(
            format="ome-tiff" if tif.is_ome else vendor if tif.is_svs else "tiff",
            backend="tiff",
            levels=_levels([pages[0] for pages in self._pages]),
            n_channels=samples.n_channels,
            dtype=samples.dtype.name,
            channel_names=names,
            background=(float(white_of(samples.dtype)) if is_color else 0.0,) * samples.n_channels,
            mpp=mpp,
            mpp_source=source if mpp else "",
            magnification=power,
            vendor=vendor,
            icc_profile=profile if isinstance(profile, bytes) else None,
            has_mask=samples.alpha is not None,
            properties={"tiff.ImageDescription": page.description, "tiff.Software": page.software},
            warnings=tuple(dict.fromkeys(warnings)),
        )


def open_tiff(path: Path) -> TiffBackend:
    """Open a TIFF file."""
    try:
        with tifffile.TiffFile(path) as tif:
            if not len(tif.pages) or not tif.series:
                raise UnsupportedFormatError(f"{path} holds no image.")
            return TiffBackend(path, tif)
    except tifffile.TiffFileError as error:
        with path.open("rb") as file:
            if not file.read(4).startswith(TIFF_MAGIC):
                raise UnsupportedFormatError(f"{path} is no TIFF file.") from error
        raise UnreadableSlideError(
            f"{path} cannot be opened as TIFF: {error}.",
            hint="The file may be truncated: compare its size with the original.",
        ) from error


def _extent(series: tifffile.TiffPageSeries) -> int:
    page = series.keyframe
    return int(page.imagelength) * int(page.imagewidth)


def _reduced_copies(
    series: tifffile.TiffPageSeries, others: Sequence[tifffile.TiffPageSeries]
) -> Iterator[tifffile.TiffPageSeries]:
    """Find the levels of a pyramid whose pages are not marked as reduced."""
    if len(series.levels) > 1:
        return
    full = last = series.keyframe
    for other in sorted(others, key=_extent, reverse=True):
        page = other.keyframe
        if (
            page.imagelength < last.imagelength
            and (page.dtype, page.samplesperpixel) == (full.dtype, full.samplesperpixel)
            and page.is_tiled
            and full.is_tiled
            and other.ndim == series.ndim
            and _is_reduced(full, page)
        ):
            last = page
            yield other


def _is_reduced(full: tifffile.TiffPage, page: tifffile.TiffPage) -> bool:
    """Whether a page has the size of another one divided by a whole number."""
    factor = round(full.imagelength / page.imagelength)
    return (
        factor >= 2
        and abs(full.imagelength / factor - page.imagelength) <= 1
        and abs(full.imagewidth / factor - page.imagewidth) <= 1
    )


def _channel_pages(
    level: tifffile.TiffPageSeries, warnings: list[str]
) -> Iterator[tifffile.TiffPage | tifffile.TiffFrame]:
    """Yield the page of each channel, at the first position of every other axis."""
    n_leading = level.ndim - level.keyframe.ndim
    axes, counts = level.axes[:n_leading], level.shape[:n_leading]
    if math.prod(counts) != len(level.pages):
        raise UnsupportedFormatError(
            f"{level.keyframe.parent.filename}: {len(level.pages)} pages do not make up axes "
            f"{level.axes} of {level.shape}."
        )
    for axis, count in zip(axes, counts, strict=True):
        if axis not in "CS" and count > 1:
            warnings.append(f"axis {axis} holds {count} images, of which the first is read")
    chosen = [range(n) if axis in "CS" else range(1) for axis, n in zip(axes, counts, strict=True)]
    for position in np.ndindex(*(len(part) for part in chosen)):
        number = int(np.ravel_multi_index(position, counts)) if counts else 0
        page = level.pages[number]
        if page is None:
            raise UnreadableSlideError(
                f"{level.keyframe.parent.filename}: page {number} of the series is missing."
            )
        yield page


def _samples_of(page: tifffile.TiffPage, n_stored: int) -> _Samples:
    dtype = np.dtype(page.dtype)
    palette = None
    if page.photometric == _PALETTE and page.colormap is not None:
        palette = (np.asarray(page.colormap).T >> 8).astype(np.uint8)
    is_byte = dtype.kind == "b" or palette is not None
    alpha = None
    if page.extrasamples and page.extrasamples[-1] in _ALPHA and n_stored in {2, 4}:
        alpha = n_stored - 1
    return _Samples(
        n_stored=n_stored,
        dtype=np.dtype(np.uint8) if is_byte else dtype.newbyteorder("="),
        is_inverted=page.photometric == _MIN_IS_WHITE and dtype.kind in "ub",
        alpha=alpha,
        palette=palette,
    )


def _levels(pages: Sequence[PageReader]) -> tuple[Level, ...]:
    full = pages[0].shape
    levels = (
        Level(
            shape=page.shape,
            downsample=(
                true_downsample(full[0], page.shape[0]),
                true_downsample(full[1], page.shape[1]),
            ),
            tile=page.block_shape,
        )
        for page in pages
    )
    return tuple(levels)


FORMATS = (
    SlideFormat(
        name="tiff",
        title="OME-TIFF, pyramidal, BigTIFF and plain TIFF",
        suffixes=(".tif", ".tiff", ".btf"),
        rank=40,
        recognizes=lambda source: source.is_local_file and source.is_tiff,
        open=lambda source: open_tiff(source.local),
    ),
)

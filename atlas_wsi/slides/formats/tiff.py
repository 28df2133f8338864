"""TIFF files that tifffile reads: OME-TIFF, pyramids of any origin, BigTIFF, plain pages."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile

from atlas_wsi.errors import UnreadableSlideError, UnsupportedFormatError
from atlas_wsi.slides import resolution
from atlas_wsi.slides.backend import Backend, Level, SlideMeta
from atlas_wsi.slides.formats import omexml
from atlas_wsi.slides.formats.segments import FileBytes, PageReader, white_of
from atlas_wsi.slides.formats.tiff_samples import TiffSamples
from atlas_wsi.slides.images import choose_image, other_images
from atlas_wsi.slides.pyramid import true_downsample
from atlas_wsi.slides.registry import SlideFormat
from atlas_wsi.slides.tiff_check import TIFF_MAGIC

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from atlas_wsi.grid import Box
    from atlas_wsi.slides.formats.segments import Bytes
    from atlas_wsi.slides.remote import RemoteBytes

_RESOLUTION_UNITS = {2: "inch", 3: "centimeter"}
_IMAGEJ_UM = {
    "um": 1.0,
    "micron": 1.0,
    "\\u00B5m": 1.0,
    "µm": 1.0,
    "nm": 1e-3,
    "mm": 1e3,
    "cm": 1e4,
}
_ORIENTATION, _TOP_LEFT = 274, 1
_SIDE_IMAGES = ("label", "macro", "thumbnail", "overview")


class TiffBackend(Backend):
    """One image of a TIFF file with its reduced copies."""

    def __init__(
        self, tif: tifffile.TiffFile, file: RemoteBytes | None = None, image: int | None = None
    ) -> None:
        self._remote = file
        self._files: dict[Path, Bytes] = {}
        warnings: list[str] = []
        images = _images(tif.series)
        number = choose_image([_extent(series) for series in images], image)
        series = images[number]
        names = tuple(_title(series) for series in images)
        if image is None:
            warnings += other_images(names, [_extent(series) for series in images], number)
        if series.keyframe.tags.valueof(_ORIENTATION, _TOP_LEFT) != _TOP_LEFT:
            warnings.append("The orientation tag is ignored: rows and columns are as stored.")
        stored = [series, *_reduced_copies(series, tif.series)]
        levels = [level for part in stored for level in part.levels]
        self._pages = [
            [self._reader(page) for page in _channel_pages(level, warnings)] for level in levels
        ]
        self._samples = TiffSamples.of(series.keyframe, sum(p.n_samples for p in self._pages[0]))
        self.meta = self._read_meta(tif, series, names, warnings)

    def read_block(self, level: int, box: Box) -> NDArray[Any]:
        """Read pixels `(rows, cols, channels)` of a stored level."""
        return self._samples.convert(self._read_stored(level, box))

    def read_valid(self, level: int, box: Box, channels: Sequence[int] = ()) -> NDArray[np.bool_]:
        """Tell which pixels are not transparent."""
        if self._samples.alpha is None:
            return super().read_valid(level, box, channels)
        return np.asarray(self._read_stored(level, box)[..., self._samples.alpha] > 0)

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
        series: tifffile.TiffPageSeries,
        images: tuple[str, ...],
        warnings: list[str],
    ) -> SlideMeta:
        page, samples = series.keyframe, self._samples
        ome = omexml.OmeImage()
        if tif.is_ome:
            index = omexml.image_index(tif.ome_metadata, series, list(tif.series).index(series))
            ome = omexml.read_image(tif.ome_metadata, index)
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
            imagej = _IMAGEJ_UM.get(str((tif.imagej_metadata or {}).get("unit", "")))
            if imagej is not None and x > 0 and y > 0:
                mpp, source = (imagej / y, imagej / x), "ImageJ unit"
        is_color = samples.is_color
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
            samples=samples.meaning(ome.significant_bits),
            images=images,
            has_mask=samples.alpha is not None,
            properties={"tiff.ImageDescription": page.description, "tiff.Software": page.software},
            warnings=tuple(dict.fromkeys(warnings)),
        )


def open_tiff(path: Path, image: int | None = None) -> TiffBackend:
    """Open an image of a TIFF file, by default the largest."""
    try:
        with tifffile.TiffFile(path) as tif:
            if not len(tif.pages) or not tif.series:
                raise UnsupportedFormatError(f"{path} holds no image.")
            return TiffBackend(tif, image=image)
    except tifffile.TiffFileError as error:
        with path.open("rb") as file:
            if not file.read(4).startswith(TIFF_MAGIC):
                raise UnsupportedFormatError(f"{path} is no TIFF file.") from error
        raise UnreadableSlideError(
            f"{path} cannot be opened as TIFF: {error}.",
            hint="The file may be truncated: compare its size with the original.",
        ) from error


def _images(series: Sequence[tifffile.TiffPageSeries]) -> list[tifffile.TiffPageSeries]:
    """Return the images of a file, without reduced copies, labels and overviews, if others are left."""
    copies = {id(copy) for one in series for copy in _reduced_copies(one, series)}
    images = [one for one in series if id(one) not in copies]
    scans = [one for one in images if not any(n in one.name.lower() for n in _SIDE_IMAGES)]
    return scans or images


def _title(series: tifffile.TiffPageSeries) -> str:
    page = series.keyframe
    size = f"{page.imagelength} x {page.imagewidth} px"
    return f"{series.name} ({size})" if series.name else size


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
    if not counts and len(level.pages) > 1:  # focal planes of a slide scanner
        warnings.append(f"of {len(level.pages)} focal planes the first is read")
        counts, axes = (len(level.pages),), "Z"
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
        open=lambda source: open_tiff(source.local, source.image),
    ),
)

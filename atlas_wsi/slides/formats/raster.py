"""Scenes: every raster that GDAL reads, with its place on earth."""

from __future__ import annotations

import re
import threading
import warnings
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning
from rasterio.session import DummySession
from rasterio.windows import Window

from atlas_wsi.errors import UnreachableSlideError, UnreadableSlideError, UnsupportedFormatError
from atlas_wsi.slides import radiometry
from atlas_wsi.slides.backend import Backend, Level, SlideMeta
from atlas_wsi.slides.blocks import whole_blocks
from atlas_wsi.slides.formats.raster_blocks import GDAL_ERRORS, is_opacity, stored_blocks
from atlas_wsi.slides.ground_resolution import read_place
from atlas_wsi.slides.pyramid import true_downsample
from atlas_wsi.slides.registry import SlideFormat, SlideSource
from atlas_wsi.slides.remote import gdal_options, is_url

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from numpy.typing import NDArray
    from rasterio.io import DatasetReader

    from atlas_wsi.grid import Box

_SCHEMES = {
    "http": "/vsicurl/http://",
    "https": "/vsicurl/https://",
    "s3": "/vsis3/",
    "s3a": "/vsis3/",
    "gs": "/vsigs/",
    "gcs": "/vsigs/",
    "az": "/vsiaz/",
}
_PLAIN_IMAGES = frozenset({"BMP", "GIF", "JPEG", "PNG", "WEBP"})
_COLOR_OF_NAME = {
    **{name: name for name in ("red", "green", "blue", "nir")},
    "b02": "blue",
    "b03": "green",
    "b04": "red",
    "b08": "nir",  # Sentinel-2 and HLS
}
_MAX_CHANNELS = 4096
_OTHER_SPACES = {
    *(ColorInterp.cyan, ColorInterp.magenta, ColorInterp.yellow, ColorInterp.black),
    *(ColorInterp.hue, ColorInterp.saturation, ColorInterp.lightness),
    *(ColorInterp.Y, ColorInterp.Cb, ColorInterp.Cr),
}
_GDAL_ALONE = (".vrt", ".jp2")  # may consist of several files
_open_lock = threading.Lock()


class RasterBackend(Backend):
    """One raster behind GDAL."""

    def __init__(
        self,
        source: str,
        options: Mapping[str, str] | None = None,
        *,
        allow_truncated: bool = False,
    ) -> None:
        self._options, self._allow_truncated = options, allow_truncated
        with _configured(options), _opened(source, None) as dataset:
            _refuse(dataset, source)
            alpha = [
                index
                for index, kind in zip(dataset.indexes, dataset.colorinterp, strict=True)
                if kind is ColorInterp.alpha
            ]
            self._has_false_alpha = any(not is_opacity(dataset, index) for index in alpha)
            self._indexes = [
                index for index in dataset.indexes if self._has_false_alpha or index not in alpha
            ] or list(dataset.indexes)
            base = Level(
                shape=dataset.shape,
                downsample=(1.0, 1.0),
                tile=whole_blocks(dataset.block_shapes[0], dataset.shape),
                stored=dataset.block_shapes[0],
            )
            factors = [dataset.overviews(index) for index in self._indexes]
            n_overviews = min(len(of_band) for of_band in factors)
            stored = [(None, base), *_overviews(source, n_overviews, base.shape)]
            self.meta = _read_meta(dataset, self._indexes, tuple(level for _, level in stored))
        self._handles = [_Handles(source, overview) for overview, _ in stored]
        self._blocks = stored_blocks(source) if self.meta.format in {"geotiff", "cog"} else None
        if self._blocks is not None:
            self.meta = replace(self.meta, has_mask=True)

    def read_block(self, level: int, box: Box) -> NDArray[Any]:
        """Read pixels `(rows, cols, bands)` as stored, without an alpha band."""
        with self._reading(level, box) as (dataset, window):
            bands = dataset.read(self._indexes, window=window, out_dtype=self.meta.dtype)
        return np.ascontiguousarray(np.moveaxis(bands, 0, -1))

    def read_valid(self, level: int, box: Box, channels: Sequence[int] = ()) -> NDArray[np.bool_]:
        """Tell which pixels hold an observation.

        Returns: bool `(rows, cols)`.

        Notes
        -----
        A pixel is valid if none of the bands is masked, nodata, NaN or infinite there; but where
        nodata is 0 in 8-bit bands, if any of them is not 0 (black water stays valid).
        """
        if self._has_false_alpha and self.meta.nodata is None:
            return super().read_valid(level, box, channels)
        numbers = list(channels) or range(self.meta.n_channels)
        indexes = sorted({self._indexes[number] for number in numbers})
        with self._reading(level, box) as (dataset, window):
            masks = dataset.read_masks(indexes, window=window) > 0
        if self.meta.dtype == "uint8" and self.meta.nodata == 0:
            return np.asarray(masks.any(axis=0))
        valid = np.asarray(masks.all(axis=0))
        if np.dtype(self.meta.dtype).kind == "f":
            valid &= np.isfinite(self.read_block(level, box)[..., list(numbers)]).all(axis=-1)
        return valid

    def is_absent(self, level: int, box: Box) -> bool:
        """Whether a sparse file holds no block of a box of the finest level."""
        if level or self._blocks is None:
            return False
        (rows, cols), n_before = self._blocks
        top, left = box.row // rows, box.col // cols
        bottom, right = -(-box.row_end // rows), -(-box.col_end // cols)
        n = n_before[bottom, right] - n_before[top, right] - n_before[bottom, left]
        return not n + n_before[top, left]

    def close(self) -> None:
        """Give the file back to the system."""
        for handles in self._handles:
            handles.close()

    @contextmanager
    def _reading(self, level: int, box: Box) -> Iterator[tuple[DatasetReader, Window]]:
        handles = self._handles[level]
        try:
            with _configured(self._options), handles.borrow() as dataset:
                yield dataset, Window(box.col, box.row, box.cols, box.rows)
        except GDAL_ERRORS as error:
            is_network = _is_network(error, allow_truncated=self._allow_truncated)
            if self._options is not None and is_network:
                raise _unreachable(handles.source, error) from error
            raise UnreadableSlideError(
                f"{handles.source}: level {level}, rows {box.row} to {box.row_end}, columns "
                f"{box.col} to {box.col_end} cannot be decoded: {_reason(error)}."
            ) from error


class _Handles:
    """Open datasets of one level: GDAL's must not be used by two threads at once."""

    def __init__(self, source: str, overview: int | None) -> None:
        self.source = source
        self._overview = overview
        self._idle: list[DatasetReader] = []
        self._lock = threading.Lock()
        self._is_closed = False

    @contextmanager
    def borrow(self) -> Iterator[DatasetReader]:
        """Lend a dataset that no other thread uses; after an error it is not lent again."""
        with self._lock:
            dataset = self._idle.pop() if self._idle else None
        if dataset is None:
            dataset = _open(self.source, self._overview)
        try:
            yield dataset
        except BaseException:
            dataset.close()
            raise
        with self._lock:
            if not self._is_closed:
                self._idle.append(dataset)
                return
        dataset.close()

    def close(self) -> None:
        """Close all datasets, those that are lent when they come back."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
        for dataset in idle:
            dataset.close()


def open_raster(path: str | Path, *, allow_truncated: bool = False) -> RasterBackend:
    """Open a raster through GDAL."""
    source = _source(str(path))
    options = gdal_options(str(path)) if is_url(str(path)) else None
    try:
        return RasterBackend(source, options, allow_truncated=allow_truncated)
    except (*GDAL_ERRORS, UnicodeDecodeError) as error:
        if options is not None and _is_network(error):
            refused = _unreachable(source, error)
            raise refused from error
        reason = _reason(error)
        if "not recognized as being in a supported file format" in reason:
            raise UnsupportedFormatError(f"{path} is no format that GDAL reads.") from error
        raise UnreadableSlideError(f"{path} cannot be opened by GDAL: {reason}.") from error


def _source(path: str) -> str:
    scheme, separator, rest = path.partition("://")
    if separator and scheme.lower() in _SCHEMES:
        return _SCHEMES[scheme.lower()] + rest
    return path


def _configured(options: Mapping[str, str] | None) -> AbstractContextManager[object]:
    """Set GDAL's configuration for this thread; GDAL finds credentials by itself."""
    if options is None:
        return nullcontext()
    return rasterio.Env(session=DummySession(), **options)  # type: ignore[no-any-return]


def _is_network(error: Exception, *, allow_truncated: bool = False) -> bool:
    """Whether GDAL failed to get the bytes, rather than to decode them."""
    # Of an outage TIFF's reader says only that bytes are missing, as of a file cut short
    signs = r"HTTP|CURL|[Rr]esponse_?code|AccessDenied|Forbidden|AWS_"
    signs += "" if allow_truncated else r"|[Rr]ead error|got \d+ bytes"
    return re.search(signs, _reason(error)) is not None


def _unreachable(source: str, error: Exception) -> UnreachableSlideError:
    return UnreachableSlideError(
        f"{source} cannot be read from its server: {_reason(error)}.",
        hint="Check the address, the credentials in the environment and the network.",
    )


def _open(source: str, overview: int | None) -> DatasetReader:
    options = {} if overview is None else {"overview_level": overview}
    # The metadata state that a raster has no georeference; filters are shared by all threads.
    with _open_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(source, **options)


@contextmanager
def _opened(source: str, overview: int | None) -> Iterator[DatasetReader]:
    with _open(source, overview) as dataset:
        yield dataset


def _refuse(dataset: DatasetReader, source: str) -> None:
    """Raise for what GDAL opens but is no image that could be analyzed."""
    if not dataset.count:
        inside = ", ".join(dataset.subdatasets[:3])
        raise UnsupportedFormatError(
            f"{source} holds {len(dataset.subdatasets)} rasters and none of its own: {inside}.",
            hint="Make a file of one of them: gdal_translate -of COG SUBDATASET scene.tif.",
        )
    if dataset.driver in _PLAIN_IMAGES and dataset.crs is None:
        raise UnsupportedFormatError(f"{source} is a plain image without a place on earth.")
    if dataset.count > _MAX_CHANNELS:
        raise UnsupportedFormatError(
            f"{source} has {dataset.count} bands, at most {_MAX_CHANNELS} are read.",
            hint="Select bands: gdal_translate -b 4 -b 3 -b 2 -of COG in.tif out.tif.",
        )
    space = _tags(dataset, "IMAGE_STRUCTURE").get("SOURCE_COLOR_SPACE", "")
    odd = [kind.name for kind in dataset.colorinterp if kind in _OTHER_SPACES]
    if odd or space in {"CIELAB", "CMYK"}:
        raise UnsupportedFormatError(
            f"{source} has colors in {space or ', '.join(odd)}, not in red, green and blue.",
            hint="Convert it once to red, green and blue: vips icc_transform IN OUT srgb.",
        )
    kinds = {
        np.dtype(name).kind if not name.startswith("complex") else "c" for name in dataset.dtypes
    }
    if not kinds <= {"u", "i", "f"}:
        raise UnsupportedFormatError(
            f"{source} has samples of type {', '.join(sorted(set(dataset.dtypes)))}; integers and "
            "real numbers are read.",
            hint="For radar, write the amplitude: gdal_calc or `gdal_translate` of a derived band.",
        )


def _overviews(
    source: str, n_overviews: int, full: tuple[int, int]
) -> list[tuple[int | None, Level]]:
    """Reduced copies with their number in the file, finest first."""
    found: list[tuple[int | None, Level]] = []
    for overview in range(n_overviews):
        with _opened(source, overview) as dataset:
            shape = dataset.shape
            stored = dataset.block_shapes[0]
        if not all(0 < m <= n for n, m in zip(full, shape, strict=True)) or shape == full:
            continue
        downsample = tuple(true_downsample(n, m) for n, m in zip(full, shape, strict=True))
        level = Level(
            shape=shape,
            downsample=(downsample[0], downsample[1]),
            tile=whole_blocks(stored, shape),
            stored=stored,
        )
        found.append((overview, level))
    found.sort(key=lambda pair: -pair[1].shape[0] * pair[1].shape[1])
    return found


def _read_meta(dataset: DatasetReader, indexes: list[int], levels: tuple[Level, ...]) -> SlideMeta:
    place = read_place(dataset)
    picked = [index - 1 for index in indexes]
    descriptions = [dataset.descriptions[i] for i in picked]
    colors = _colors([dataset.colorinterp[i].name for i in picked], descriptions)
    dtype = np.result_type(*(dataset.dtypes[i] for i in picked))
    flags = [flag for i in picked for flag in dataset.mask_flag_enums[i]]
    notes = [*place.warnings]
    if "palette" in colors:
        notes.append("Samples are numbers of a color table, not colors; they are read as stored.")
    if any(kind is ColorInterp.alpha for kind in (dataset.colorinterp[i] for i in picked)):
        notes.append(
            "The band marked as alpha holds many values: it is read as a band, not as a mask."
        )
        flags = [flag for flag in flags if flag not in {MaskFlags.alpha, MaskFlags.per_dataset}]
    nodata = dataset.nodatavals[picked[0]]
    return SlideMeta(
        format=_format(dataset),
        backend="raster",
        levels=levels,
        n_channels=len(indexes),
        dtype=dtype.name,
        channel_names=_channel_names(descriptions, colors, indexes),
        background=tuple(_background(dataset.nodatavals[i], dtype) for i in picked),
        mpp=place.mpp,
        mpp_source=place.mpp_source,
        crs=place.crs,
        transform=place.transform,
        nodata=nodata,
        samples=radiometry.from_tags(
            [dataset.scales[i] for i in picked], [dataset.offsets[i] for i in picked]
        )
        or radiometry.from_product(dataset.files, _tags(dataset, None), len(picked)),
        has_mask=any(flag is not MaskFlags.all_valid for flag in flags) or dtype.kind == "f",
        properties=_properties(dataset, colors),
        warnings=tuple(notes),
    )


def _format(dataset: DatasetReader) -> str:
    if dataset.driver != "GTiff":
        return str(dataset.driver).lower()
    if _tags(dataset, "IMAGE_STRUCTURE").get("LAYOUT") == "COG":
        return "cog"
    return "geotiff"


def _colors(interpretations: list[str], descriptions: list[str | None]) -> tuple[str, ...]:
    """Return the color of each band; where GDAL has no red, by the names of the bands."""
    if "red" in interpretations:
        return tuple(interpretations)
    return tuple(
        _COLOR_OF_NAME.get((description or "").strip().lower(), interpretation)
        for interpretation, description in zip(interpretations, descriptions, strict=True)
    )


def _channel_names(
    descriptions: list[str | None], colors: tuple[str, ...], indexes: list[int]
) -> tuple[str, ...]:
    """Return the bands' descriptions, else their colors, else their numbers."""
    names = []
    for description, color, index in zip(descriptions, colors, indexes, strict=True):
        is_stated = color != "undefined" and colors.count(color) == 1
        is_stated &= color != "gray" or len(colors) == 1
        names.append(description or (color if is_stated else f"band {index}"))
    return tuple(names)


def _background(nodata: float | None, dtype: np.dtype[Any]) -> float:
    if nodata is None:
        return 0.0
    if dtype.kind == "f":
        return float(nodata)
    info = np.iinfo(dtype)
    return float(nodata) if info.min <= nodata <= info.max else 0.0


def _properties(dataset: DatasetReader, colors: tuple[str, ...]) -> dict[str, str]:
    facts = _tags(dataset, None)
    facts |= {key.lower(): value for key, value in _tags(dataset, "IMAGE_STRUCTURE").items()}
    facts["driver"] = str(dataset.driver)
    facts["colorinterp"] = ",".join(colors)
    if any(scale != 1.0 for scale in dataset.scales) or any(dataset.offsets):
        facts["scales"] = ",".join(f"{scale:g}" for scale in dataset.scales)
        facts["offsets"] = ",".join(f"{offset:g}" for offset in dataset.offsets)
    return facts


def _tags(dataset: DatasetReader, namespace: str | None) -> dict[str, str]:
    try:
        return dict(dataset.tags(ns=namespace))
    except UnicodeDecodeError:  # text in another encoding is no reason to refuse the pixels
        return {}


def _reason(error: Exception) -> str:
    """Return what GDAL said first: rasterio's own text is often 'Read failed'."""
    causes: BaseException = error
    while causes.__cause__ is not None:
        causes = causes.__cause__
    return str(causes).rstrip(".")


def _open_source(source: SlideSource) -> RasterBackend:
    source.close()  # GDAL connects to the server by itself
    return open_raster(source.url or source.local, allow_truncated=source.allow_truncated)


FORMATS = (
    SlideFormat(
        name="geotiff",
        title="GeoTIFF and COG",
        suffixes=(".tif", ".tiff"),
        rank=30,
        recognizes=lambda source: not source.address.endswith(_GDAL_ALONE) and source.is_scene,
        open=_open_source,
    ),
    SlideFormat(
        name="gdal-files",
        title="VRT, JP2",
        suffixes=_GDAL_ALONE,
        rank=6,
        recognizes=lambda source: source.address.endswith(_GDAL_ALONE),
        open=_open_source,
    ),
    SlideFormat(
        name="raster",
        title="every other GDAL raster with a georeference",
        suffixes=(),
        rank=80,
        is_guess=True,
        recognizes=lambda source: not (source.is_folder or source.is_tiff or source.is_zip),
        open=_open_source,
    ),
)

"""Slides that OpenSlide reads: Aperio, Hamamatsu, MIRAX, Leica, Ventana, Philips, DICOM, ..."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import openslide

from atlas_wsi.errors import UnreadableSlideError, UnsupportedFormatError
from atlas_wsi.grid import Box
from atlas_wsi.slides import resolution
from atlas_wsi.slides.backend import Backend, Level, SlideMeta
from atlas_wsi.slides.pyramid import true_downsample
from atlas_wsi.slides.registry import SlideFormat, SlideSource

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

_TILE_PX = 512


class OpenSlideBackend(Backend):
    """One slide behind OpenSlide."""

    def __init__(self, path: Path, handle: openslide.OpenSlide) -> None:
        self._path = path
        self._handle = handle
        self._lock = threading.Lock()
        self.meta = _read_meta(handle)
        self._background = np.array(self.meta.background, dtype=np.float32)

    def read_block(self, level: int, box: Box) -> NDArray[Any]:
        """Read uint8 pixels `(rows, cols, 3)`; transparent parts show the background color."""
        rgba = self._read_rgba(level, box)
        alpha = rgba[..., 3]
        if alpha.min() == 255:
            return np.ascontiguousarray(rgba[..., :3])
        share = alpha[..., None].astype(np.float32) / 255.0
        blended = rgba[..., :3] * share + self._background * (1.0 - share)
        return np.asarray(np.rint(blended), dtype=np.uint8)

    def read_valid(
        self,
        level: int,
        box: Box,
        channels: Sequence[int] = (),  # noqa: ARG002
    ) -> NDArray[np.bool_]:
        """Tell which pixels were scanned."""
        return np.asarray(self._read_rgba(level, box)[..., 3] > 0)

    def read_associated(self, name: str) -> NDArray[Any]:
        """Read an associated image."""
        handle = self._handle
        try:
            return np.asarray(handle.associated_images[name].convert("RGB"))
        except openslide.OpenSlideError as error:
            self._replace(handle)
            raise UnreadableSlideError(
                f"{self._path}: the associated image {name!r} cannot be decoded: {error}."
            ) from error

    def close(self) -> None:
        """Give the file back to the system."""
        self._handle.close()

    def _read_rgba(self, level: int, box: Box) -> NDArray[np.uint8]:
        handle = self._handle
        try:
            return _read(handle, level, box)
        except openslide.OpenSlideError:
            # An error spoils the handle for every thread that reads through it, so this block may
            # be sound: a new handle of our own shows.
            self._replace(handle)
        try:
            with openslide.OpenSlide(self._path) as private:
                return _read(private, level, box)
        except openslide.OpenSlideError as error:
            raise UnreadableSlideError(
                f"{self._path}: level {level}, rows {box.row} to {box.row_end}, columns "
                f"{box.col} to {box.col_end} cannot be decoded: {error}."
            ) from error

    def _replace(self, spoiled: openslide.OpenSlide) -> None:
        with self._lock:
            if self._handle is spoiled:
                self._handle = openslide.OpenSlide(self._path)


def open_openslide(path: Path) -> OpenSlideBackend:
    """Open a slide through OpenSlide."""
    try:
        return OpenSlideBackend(path, openslide.OpenSlide(path))
    except openslide.OpenSlideUnsupportedFormatError as error:
        raise UnsupportedFormatError(f"{path} is no format that OpenSlide reads.") from error
    except openslide.OpenSlideError as error:
        raise UnreadableSlideError(
            f"{path} cannot be opened by OpenSlide: {error}.",
            hint="The file may be truncated: compare its size with the original.",
        ) from error


def _read(handle: openslide.OpenSlide, level: int, box: Box) -> NDArray[np.uint8]:
    # OpenSlide wants the corner in level-0 pixels and divides by its own downsample; the nearest
    # integer leaves less than half a level pixel, and it takes the nearest stored pixel.
    downsample = handle.level_downsamples[level]
    corner = round(box.col * downsample), round(box.row * downsample)
    return np.asarray(handle.read_region(corner, level, (box.cols, box.rows)))


def _read_meta(handle: openslide.OpenSlide) -> SlideMeta:
    properties: Mapping[str, str] = dict(handle.properties)
    vendor = properties.get(openslide.PROPERTY_NAME_VENDOR, "")
    full = handle.dimensions[1], handle.dimensions[0]
    levels = []
    for index, (cols, rows) in enumerate(handle.level_dimensions):
        levels.append(
            Level(
                shape=(rows, cols),
                downsample=(true_downsample(full[0], rows), true_downsample(full[1], cols)),
                tile=_tile(properties, index, (rows, cols)),
            )
        )
    mpp, source = resolution.from_openslide(properties)
    power = float(properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER) or 0)
    profile = handle.color_profile
    return SlideMeta(
        format=vendor,
        backend="openslide",
        levels=tuple(levels),
        n_channels=3,
        dtype="uint8",
        channel_names=("red", "green", "blue"),
        background=_background(properties),
        mpp=mpp,
        mpp_source=source,
        magnification=power or None,
        vendor=vendor,
        bounds=_bounds(properties, full),
        icc_profile=profile.tobytes() if profile is not None else None,
        associated=tuple(sorted(handle.associated_images)),
        properties=properties,
        warnings=resolution.contradictions(mpp, power),
    )


def _tile(properties: Mapping[str, str], level: int, shape: tuple[int, int]) -> tuple[int, int]:
    """Return the stored tile, or a square if what is stored is very small or very large."""
    rows = int(properties.get(f"openslide.level[{level}].tile-height", 0))
    cols = int(properties.get(f"openslide.level[{level}].tile-width", 0))
    if 32 <= rows <= 2048 and 32 <= cols <= 2048:
        return rows, cols
    return min(_TILE_PX, shape[0]), min(_TILE_PX, shape[1])


def _background(properties: Mapping[str, str]) -> tuple[float, ...]:
    color = properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "")
    if len(color) != 6:
        return (255.0, 255.0, 255.0)
    return tuple(float(value) for value in bytes.fromhex(color))


def _bounds(properties: Mapping[str, str], full: tuple[int, int]) -> Box | None:
    names = ("bounds-y", "bounds-x", "bounds-height", "bounds-width")
    values = [properties.get(f"openslide.{name}") for name in names]
    if not all(values):
        return None
    row, col, rows, cols = (int(value or 0) for value in values)
    box = Box(row=row, col=col, rows=rows, cols=cols).clip(full)
    return None if box.is_empty else box


def _has_vendor(source: SlideSource) -> bool:
    if source.is_tiff:
        return source.vendor not in {None, "generic-tiff", "aperio"}
    return source.vendor is not None or (source.is_local_file and _is_dicom(source.head))


def _dicom_slide(folder: Path) -> Path | None:
    """Return an instance of the DICOM slide in a folder; one instance opens the whole series."""
    files = [file for file in folder.iterdir() if file.is_file()]
    # the largest first: a folder may hold the label of another slide, too
    for file in sorted(files, key=lambda file: file.stat().st_size, reverse=True):
        is_dicom = _is_dicom(SlideSource(file).head)
        if is_dicom and openslide.OpenSlide.detect_format(file):
            return file
    return None


def _is_dicom(head: bytes) -> bool:
    return head[128:132] == b"DICM"


def _open_dicom_folder(source: SlideSource) -> OpenSlideBackend:
    file = _dicom_slide(source.local)
    assert file is not None
    return open_openslide(file)


FORMATS = (
    SlideFormat(
        name="dicom-folder",
        title="folder with a DICOM series",
        suffixes=(),
        rank=20,
        recognizes=lambda source: source.is_folder and _dicom_slide(source.local) is not None,
        open=_open_dicom_folder,
    ),
    SlideFormat(
        name="openslide",
        title="NDPI, SCN, MRXS, VMS, BIF, DICOM and other formats of OpenSlide",
        suffixes=(
            ".bif",
            ".czi",
            ".dcm",
            ".mrxs",
            ".ndpi",
            ".qptiff",
            ".scn",
            ".svslide",
            ".vms",
            ".vmu",
        ),
        rank=20,
        recognizes=_has_vendor,
        open=lambda source: open_openslide(source.local),
    ),
)

"""open_slide: look at what a file holds, not at its name, and pick the reader."""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, cast
from urllib.parse import urlsplit
from urllib.request import url2pathname

import openslide
import tifffile

from atlas_wsi.errors import AtlasError, UnreadableSlideError, UnsupportedFormatError
from atlas_wsi.slides.remote import COPY_HINT, RemoteBytes, RemoteFile, is_url
from atlas_wsi.slides.slide import Slide
from atlas_wsi.slides.tiff import TIFF_MAGIC, open_tiff

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atlas_wsi.slides.backend import Backend

_ZARR_FILES = ("zarr.json", ".zgroup", ".zattrs", ".zarray")
_GEO_TAGS = (33550, 33922, 34264, 34735)  # pixel scale, tie points, transformation, GeoKeys
_HEAD_BYTES = 132
_MAX_TILE_PX = 2**26
_MAX_SIDE_PX = 2**23
_TIFF_ERRORS = (tifffile.TiffFileError, TypeError, ValueError, IndexError, struct.error)
# What tags of impossible types, counts and sizes make of the arithmetic that they go into
_DAMAGED = (
    *_TIFF_ERRORS,
    ArithmeticError,
    AttributeError,
    AssertionError,
    KeyError,
    SyntaxError,
    RecursionError,
)
_RASTER_SUFFIXES = (".vrt", ".jp2")  # of several files; for GDAL alone


def open_slide(
    path: str | os.PathLike[str],
    mpp: float | tuple[float, float] | None = None,
    *,
    strict: bool = False,
) -> Slide:
    """Open a slide or a scene; no pixel is read yet.

    Parameters
    ----------
    path
        A file, a folder (DICOM series, OME-Zarr) or a URL (SVS and other TIFF, GeoTIFF and other
        rasters, OME-Zarr on ``https://``, ``s3://``, ``gs://``): of these only the parts that are
        asked for are fetched.
    mpp
        Micrometers per level-0 pixel, a number or `(y, x)`, instead of what the file says.
    strict
        Whether a block that cannot be decoded raises, rather than being filled with background
        and listed in ``slide.unreadable``.

    Returns
    -------
    Slide
        The lazy pyramid; also a context manager.

    Raises
    ------
    UnreadableSlideError
        If it is missing, protected, empty, truncated or damaged.
    """
    text = os.fspath(path)
    if text.startswith("file://"):
        text = url2pathname(urlsplit(text).path)
    if is_url(text):
        return Slide(_open_url(text), text, mpp=mpp, strict=strict)
    local = Path(text).expanduser().absolute()
    try:
        backend = _open_folder(local) if local.is_dir() else _open_file(local)
    except FileNotFoundError as error:
        raise UnreadableSlideError(f"{local} does not exist.", hint="Check the path.") from error
    except PermissionError as error:
        raise UnreadableSlideError(f"{local} may not be read: {error.strerror}.") from error
    return Slide(backend, str(local), mpp=mpp, strict=strict)


def _open_url(url: str) -> Backend:
    """Open what is on a server by its first bytes; a folder there shows by its name only."""
    from atlas_wsi.slides.omezarr import open_omezarr
    from atlas_wsi.slides.raster import open_raster

    place = urlsplit(url).path.lower()
    if ".zarr" in place and not place.endswith(".zip"):
        return open_omezarr(url)
    if place.endswith(_RASTER_SUFFIXES):
        return open_raster(url)
    try:
        file = RemoteBytes(url)
    except UnreadableSlideError as missing:
        if PurePosixPath(place).suffix:
            raise
        try:
            return open_omezarr(url)
        except UnsupportedFormatError:
            raise missing from None
    try:
        return _open_remote_file(url, file)
    except BaseException:
        file.close()
        raise


def _open_remote_file(url: str, file: RemoteBytes) -> Backend:
    """Open a file on a server; a reader that goes to the server by itself needs no bytes."""
    if not file.size:
        raise UnreadableSlideError(f"{file.path} is empty.", hint="Copy it there again.")
    head = file.read(0, min(_HEAD_BYTES, file.size))
    if head.startswith(TIFF_MAGIC) and not _is_scene(RemoteFile(file), file.path):
        from atlas_wsi.slides.remote_tiff import open_remote_tiff

        return open_remote_tiff(file)
    if not head.startswith(b"PK\x03\x04"):
        from atlas_wsi.slides.raster import open_raster

        file.close()
        try:
            return open_raster(url)
        except UnsupportedFormatError as error:
            if error.hint:
                raise
    raise UnsupportedFormatError(
        f"{file.path} is of a format that is read from a disk only.", hint=COPY_HINT
    )


def _open_folder(path: Path) -> Backend:
    """Open a folder: an OME-Zarr or a DICOM series."""
    if any((path / name).exists() for name in _ZARR_FILES):
        from atlas_wsi.slides.omezarr import open_omezarr

        return open_omezarr(path)
    from atlas_wsi.slides.openslide import open_openslide

    for file in _dicom_files(path):
        # Any instance of a series opens all of it, but a folder may hold other things too.
        if openslide.OpenSlide.detect_format(file):
            return open_openslide(file)
    hint = "Give the slide file itself."
    index_file = path.with_suffix(".mrxs")
    if index_file.exists():
        hint = f"Give the file beside it: {index_file}."
    raise UnsupportedFormatError(
        f"{path} is a folder that holds neither a DICOM slide nor an OME-Zarr.", hint=hint
    )


def _dicom_files(folder: Path) -> Iterator[Path]:
    """Yield the largest first: a folder may hold the label of another slide, too."""
    files = [file for file in folder.iterdir() if file.is_file()]
    for file in sorted(files, key=lambda file: file.stat().st_size, reverse=True):
        if _is_dicom(_head(file)):
            yield file


def _open_file(path: Path) -> Backend:
    """Open a file by its first bytes."""
    head = _head(path)
    if not head:
        raise UnreadableSlideError(f"{path} is empty.", hint="Copy or download it again.")
    if head.startswith(TIFF_MAGIC):
        try:
            return _open_tiff_family(path)
        except AtlasError:
            raise
        except _DAMAGED as error:
            raise UnreadableSlideError(
                f"{path} has a tag that makes no sense: {type(error).__name__}: {error}.",
                hint="The file is damaged: copy or download it again.",
            ) from error
    if head.startswith(b"PK\x03\x04"):
        from atlas_wsi.slides.omezarr import open_omezarr

        return open_omezarr(path)
    from atlas_wsi.slides.openslide import open_openslide

    if _is_dicom(head) or _vendor(path):
        return open_openslide(path)
    return _open_other(path, head)


def _open_tiff_family(path: Path) -> Backend:
    """Tell scenes, scanner formats and other TIFF files apart by their tags."""
    from atlas_wsi.slides.jpegtiles import open_aperio
    from atlas_wsi.slides.openslide import open_openslide

    _check_directories(path)
    vendor = _vendor(path)
    if vendor == "aperio":
        return open_aperio(path)
    if vendor and vendor != "generic-tiff":
        return open_openslide(path)
    if _is_scene(path, str(path)):
        from atlas_wsi.slides.raster import open_raster

        return open_raster(path)
    return open_tiff(path)


def _check_directories(path: Path) -> None:
    """Refuse sizes that make no sense before OpenSlide asks for room for them."""
    with contextlib.suppress(*_TIFF_ERRORS), tifffile.TiffFile(path, _multifile=False) as tif:
        size = path.stat().st_size
        for n, page in enumerate(tif.pages):
            key = page.keyframe
            if key is None:
                continue
            px = int(key.tilelength) * int(key.tilewidth)
            stored = max(page.databytecounts, default=0)
            is_image = all(0 < side < _MAX_SIDE_PX for side in (key.imagelength, key.imagewidth))
            if not is_image or px > _MAX_TILE_PX or stored > size:
                raise UnreadableSlideError(
                    f"{path} has a directory that makes no sense: {key.imagelength} x "
                    f"{key.imagewidth} px (a side may have {_MAX_SIDE_PX:,}) in tiles of "
                    f"{key.tilelength} x {key.tilewidth} (at most {_MAX_TILE_PX >> 20} Mpx), the "
                    f"largest of {stored} bytes (directory {n}).",
                    hint="The file is damaged: copy or download it again.",
                )


def _is_scene(file: Path | RemoteFile, name: str) -> bool:
    """Check that the file's directories are whole and look for GeoTIFF's tags."""
    hint = "Copy or download it again and compare the sizes."
    try:
        with tifffile.TiffFile(cast("Path | IO[bytes]", file), _multifile=False) as tif:
            end = _directory_beyond(tif)
            if end is not None:
                raise UnreadableSlideError(
                    f"{name} is truncated: a directory begins at byte {end}, but the file has "
                    f"{tif.filehandle.size} bytes.",
                    hint=hint,
                )
            return any(tag in tif.pages.first.tags for tag in _GEO_TAGS)
    except _TIFF_ERRORS as error:
        raise UnreadableSlideError(
            f"{name} begins like a TIFF file, but its directory cannot be read: {error}.",
            hint=hint,
        ) from error


def _directory_beyond(tif: tifffile.TiffFile) -> int | None:
    """Return where the directory begins that lies behind the end of the file, if one does."""
    file, layout = tif.filehandle, tif.tiff
    where = layout.offsetsize  # in the header, 4 in classic TIFF and 8 in BigTIFF
    if len(tif.pages):
        where = tif.pages[len(tif.pages) - 1].offset
        file.seek(where)
        (n_tags,) = struct.unpack(layout.tagnoformat, file.read(layout.tagnosize))
        where += layout.tagnosize + n_tags * layout.tagsize
    file.seek(where)
    (following,) = struct.unpack(layout.offsetformat, file.read(layout.offsetsize))
    return int(following) if following >= file.size else None


def _open_other(path: Path, head: bytes) -> Backend:
    """Try the readers of everything else: what GDAL can place on earth, then plain images."""
    from atlas_wsi.slides.image import open_image
    from atlas_wsi.slides.raster import open_raster

    for open_as in (open_raster, open_image):
        try:
            return open_as(path)
        except UnsupportedFormatError as error:
            if error.hint:  # it knows the file well enough to say what to do
                raise
    found = "a text file" if _is_text(head) else f"a file that begins with {head[:8]!r}"
    raise UnsupportedFormatError(
        f"{path} is {found}: no slide, scene or image that can be read.",
        hint="`atlas-wsi doctor` lists the formats.",
    )


def _vendor(path: Path) -> str | None:
    """Ask OpenSlide who made a file; None if it does not know or cannot tell."""
    try:
        return openslide.OpenSlide.detect_format(path)
    except openslide.OpenSlideError:
        return None


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES)


def _is_dicom(head: bytes) -> bool:
    return head[128:132] == b"DICM"


def _is_text(head: bytes) -> bool:
    return all(byte >= 32 or byte in b"\t\n\r\f" for byte in head)

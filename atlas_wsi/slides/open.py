"""open_slide: choose the reader by the content of a file, not by its name."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

from atlas_wsi.errors import AtlasError, UnreadableSlideError, UnsupportedFormatError
from atlas_wsi.slides.images import choose_image
from atlas_wsi.slides.radiometry import stated_range
from atlas_wsi.slides.registry import SlideSource, slide_formats
from atlas_wsi.slides.remote import COPY_HINT, is_url
from atlas_wsi.slides.resolution import parse_gsd
from atlas_wsi.slides.slide import Slide
from atlas_wsi.slides.tiff_check import DAMAGED

if TYPE_CHECKING:
    from atlas_wsi.slides.backend import Backend


def open_slide(
    path: str | os.PathLike[str],
    mpp: float | tuple[float, float] | None = None,
    *,
    gsd: float | str | None = None,
    scale: tuple[float, float] | None = None,
    image: int | None = None,
    allow_truncated: bool = False,
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
    gsd
        The same in meters, for scenes: a number, or text such as ``"10m"`` or ``"30cm"``.
    scale
        Stored values of black and white of samples that are not 8-bit colors, instead of what the
        file says.
    image
        Number of the image to read, of those that the file holds; by default the largest.
    allow_truncated
        Whether a file whose end is missing is read as far as it goes.
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
    UnsupportedFormatError
        If no format recognizes it.
    ValueError
        If both `mpp` and `gsd` are given, `gsd` is not a length, or `scale` is not two numbers of
        which the first is lower.
    """
    if gsd is not None:
        if mpp is not None:
            raise ValueError("mpp and gsd both state the pixel size; give one")
        mpp = parse_gsd(str(gsd))
    if scale is not None:
        stated_range(*scale, 1)
    text = os.fspath(path)
    if text.startswith("file://"):
        text = url2pathname(urlsplit(text).path)
    if is_url(text):
        source = SlideSource(url=text, image=image, allow_truncated=allow_truncated)
        backend = _checked(_open_url(text, source), image)
        return Slide(
            backend,
            text,
            mpp=mpp,
            scale=scale,
            image=image,
            allow_truncated=allow_truncated,
            strict=strict,
        )
    local = Path(text).expanduser().absolute()
    source = SlideSource(local, image=image, allow_truncated=allow_truncated)
    try:
        if not (local.is_file() or local.is_dir()) and local.stat():
            raise UnsupportedFormatError(
                f"{local} is no regular file: a pipe or a device cannot be read at any place.",
                hint="Write it to a file first.",
            )
        backend = _checked(_open_local(source), image)
    except FileNotFoundError as error:
        raise UnreadableSlideError(f"{local} does not exist.", hint="Check the path.") from error
    except PermissionError as error:
        raise UnreadableSlideError(f"{local} may not be read: {error.strerror}.") from error
    except AtlasError:
        raise
    except OSError as error:
        raise UnreadableSlideError(f"{local} cannot be read: {error.strerror}.") from error
    return Slide(
        backend,
        str(local),
        mpp=mpp,
        scale=scale,
        image=image,
        allow_truncated=allow_truncated,
        strict=strict,
    )


def _checked(backend: Backend, image: int | None) -> Backend:
    """Refuse the number of an image that the file does not hold, whichever format it has."""
    if image is not None:
        try:
            choose_image([1] * max(1, len(backend.meta.images)), image)
        except UnsupportedFormatError:
            backend.close()
            raise
    return backend


def _open_local(source: SlideSource) -> Backend:
    """Open a file or folder on a disk."""
    if not source.is_folder and not source.head:
        raise UnreadableSlideError(f"{source.name} is empty.", hint="Copy or download it again.")
    try:
        backend = _first_that_opens(source)
    except AtlasError:
        raise
    except DAMAGED as error:
        if not source.is_tiff:
            raise
        raise source.senseless(error) from error
    if backend is not None:
        return backend
    if source.is_folder:
        hint = "Give the slide file itself."
        index_file = source.local.with_suffix(".mrxs")
        if index_file.exists():
            hint = f"Give the file beside it: {index_file}."
        raise UnsupportedFormatError(
            f"{source.name} is a folder that holds neither a DICOM slide nor an OME-Zarr.",
            hint=hint,
        )
    found = f"a file that begins with {source.head[:8]!r}"
    if all(byte >= 32 or byte in b"\t\n\r\f" for byte in source.head):
        found = "a text file"
    raise UnsupportedFormatError(
        f"{source.name} is {found}: no slide, scene or image that can be read.",
        hint="`atlas-wsi doctor` lists the formats.",
    )


def _open_url(url: str, source: SlideSource) -> Backend:
    """Open a file on a server by its first bytes; a folder there is recognized by name only."""
    try:
        backend = _first_that_opens(source)
    except UnreadableSlideError as missing:
        source.close()
        if PurePosixPath(source.address).suffix:
            raise
        from atlas_wsi.slides.formats.omezarr import open_omezarr

        try:
            return open_omezarr(url)
        except UnsupportedFormatError:
            raise missing from None
    except BaseException:
        source.close()
        raise
    if backend is None:
        source.close()
        raise UnsupportedFormatError(
            f"{source.name} is of a format that can only be read from a disk.", hint=COPY_HINT
        )
    return backend


def _first_that_opens(source: SlideSource) -> Backend | None:
    """Open with the first format that recognizes a source; None if none does."""
    for kind in slide_formats():
        if not kind.recognizes(source):
            continue
        try:
            return kind.open(source)
        except UnsupportedFormatError as error:
            if not kind.is_guess or error.hint:
                raise
    return None

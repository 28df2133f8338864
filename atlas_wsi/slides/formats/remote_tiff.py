"""TIFF files on servers: what tifffile and imagecodecs decode without OpenSlide."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, cast

import tifffile

from atlas_wsi.errors import UnreadableSlideError, UnsupportedFormatError
from atlas_wsi.slides.formats.jpeg_tiles import is_plain
from atlas_wsi.slides.formats.tiff import TiffBackend
from atlas_wsi.slides.registry import SlideFormat
from atlas_wsi.slides.remote import COPY_HINT, RemoteFile

if TYPE_CHECKING:
    from atlas_wsi.slides.remote import RemoteBytes


def open_remote_tiff(file: RemoteBytes) -> TiffBackend:
    """Open a TIFF file on a server, Aperio's among them."""
    try:
        # a set of OME-TIFF files would be looked for on this machine
        with tifffile.TiffFile(cast("IO[bytes]", RemoteFile(file)), _multifile=False) as tif:
            if not len(tif.pages) or not tif.series:
                raise UnsupportedFormatError(f"{file.path} holds no image.")
            _refuse_vendors(tif, file.path)
            return TiffBackend(tif, file)
    except tifffile.TiffFileError as error:
        raise UnreadableSlideError(f"{file.path} cannot be opened as TIFF: {error}.") from error


def _refuse_vendors(tif: tifffile.TiffFile, path: str) -> None:
    """Raise for scanner files whose pixels OpenSlide puts together from more than tiles."""
    makers = {
        "Hamamatsu": tif.is_ndpi,
        "Leica": tif.is_scn,
        "Philips": tif.is_philips,
        "Ventana": tif.is_bif,
        "Trestle": tif.pages.first.software.startswith("MedScan"),
    }
    found = next((maker for maker, is_found in makers.items() if is_found), None)
    if tif.is_svs:
        whole = (page for page in tif.pages if isinstance(page, tifffile.TiffPage))
        pages = [page for page in whole if page.is_tiled]
        if not all(is_plain(page) and all(page.databytecounts) for page in pages):
            found = "Aperio"
    if found:
        raise UnsupportedFormatError(
            f"{path} is a {found} slide of a kind that only OpenSlide reads, and it reads files "
            "on disks only.",
            hint=COPY_HINT,
        )


FORMATS = (
    SlideFormat(
        name="remote-tiff",
        title="SVS and other TIFF files on a server",
        suffixes=(),
        rank=40,
        recognizes=lambda source: source.url is not None and source.is_tiff,
        open=lambda source: open_remote_tiff(source.file),
    ),
)

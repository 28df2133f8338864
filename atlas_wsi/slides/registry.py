"""The table of slide formats: what they are called, how to recognize and how to open them.

Every module of `atlas_wsi.slides.formats` lists its formats in `FORMATS`. Other packages add theirs
through entry points of the group ``atlas_wsi.slide_formats``, each a `SlideFormat`.
"""

from __future__ import annotations

import pkgutil
import warnings
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

import openslide
import tifffile

from atlas_wsi.errors import UnreadableSlideError
from atlas_wsi.slides import formats as _formats
from atlas_wsi.slides.remote import RemoteBytes, RemoteFile
from atlas_wsi.slides.tiff_check import (
    DAMAGED,
    TIFF_ERRORS,
    TIFF_MAGIC,
    check_directories,
    directory_beyond,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path
    from typing import IO

    from atlas_wsi.slides.backend import Backend

ENTRY_POINTS = "atlas_wsi.slide_formats"
ZARR_FILES = ("zarr.json", ".zgroup", ".zattrs", ".zarray")
ZIP_MAGIC = b"PK\x03\x04"
_GEO_TAGS = (33550, 33922, 34264, 34735)  # pixel scale, tie points, transformation, GeoKeys
_HEAD_BYTES = 132


class SlideSource:
    """A file, folder or URL that is about to be opened, and what is known about its content.

    Parameters
    ----------
    path
        A local file or folder; None for a URL.
    url
        An address on a server; None for a local path.
    image
        Number of the image to read, of those that the file holds; None for the largest.
    allow_truncated
        Whether a file whose end is missing is read as far as it goes.
    """

    def __init__(
        self,
        path: Path | None = None,
        url: str | None = None,
        *,
        image: int | None = None,
        allow_truncated: bool = False,
    ) -> None:
        self.path, self.url = path, url
        self.image, self.allow_truncated = image, allow_truncated
        self.name = str(path) if url is None else url
        self._file: RemoteBytes | None = None

    @property
    def address(self) -> str:
        """The path part of the URL in lower case; empty for a local path."""
        return "" if self.url is None else urlsplit(self.url).path.lower()

    @cached_property
    def is_folder(self) -> bool:
        """Whether it is a local folder."""
        return self.path is not None and self.path.is_dir()

    @property
    def local(self) -> Path:
        """The local path; formats that read from a disk only ask for it after `is_local_file`."""
        assert self.path is not None
        return self.path

    @property
    def is_local_file(self) -> bool:
        """Whether it is a file on a disk."""
        return self.path is not None and not self.is_folder

    @property
    def file(self) -> RemoteBytes:
        """The bytes behind the URL, opened once."""
        if self._file is None:
            assert self.url is not None
            self._file = RemoteBytes(self.url)
            self.name = str(self._file.path)
        return self._file

    @cached_property
    def head(self) -> bytes:
        """The first bytes of the file; empty for a folder."""
        if self.is_folder:
            return b""
        if self.path is None:
            if not self.file.size:
                raise UnreadableSlideError(f"{self.name} is empty.", hint="Copy it there again.")
            return self.file.read(0, min(_HEAD_BYTES, self.file.size))
        with self.path.open("rb") as file:
            return file.read(_HEAD_BYTES)

    @cached_property
    def is_tiff(self) -> bool:
        """Whether it begins like a TIFF or BigTIFF file; one with impossible tables is refused."""
        if not self.head.startswith(TIFF_MAGIC):
            return False
        try:
            check_directories(self._binary(), self.name, allow_truncated=self.allow_truncated)
        except DAMAGED as error:
            raise self.senseless(error) from error
        return True

    def senseless(self, error: Exception) -> UnreadableSlideError:
        """Say that a tag of a TIFF file makes no sense."""
        return UnreadableSlideError(
            f"{self.name} has a tag that makes no sense: {type(error).__name__}: {error}.",
            hint="The file is damaged: copy or download it again.",
        )

    @property
    def is_zip(self) -> bool:
        """Whether it begins like a zip file."""
        return self.head.startswith(ZIP_MAGIC)

    @cached_property
    def vendor(self) -> str | None:
        """The scanner vendor that OpenSlide recognizes in a local file; None if it does not."""
        if not self.is_local_file:
            return None
        try:
            return openslide.OpenSlide.detect_format(self.local)
        except openslide.OpenSlideError:
            return None

    @cached_property
    def is_scene(self) -> bool:
        """Whether a TIFF file has GeoTIFF tags; its chain of directories must be complete."""
        if not self.is_tiff:
            return False
        hint = "Copy or download it again and compare the sizes."
        try:
            with tifffile.TiffFile(self._binary(), _multifile=False) as tif:
                end = directory_beyond(tif)
                if end is not None and not self.allow_truncated:
                    raise UnreadableSlideError(
                        f"{self.name} is truncated: a directory begins at byte {end}, but the file "
                        f"has {tif.filehandle.size} bytes.",
                        hint=hint,
                    )
                return any(tag in tif.pages.first.tags for tag in _GEO_TAGS)
        except TIFF_ERRORS as error:
            raise UnreadableSlideError(
                f"{self.name} begins like a TIFF file, but its directory cannot be read: {error}.",
                hint=hint,
            ) from error

    def _binary(self) -> Path | IO[bytes]:
        return self.path or cast("IO[bytes]", RemoteFile(self.file))

    def close(self) -> None:
        """Close the connection, if one was opened."""
        if self._file is not None:
            self._file.close()
            self._file = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideFormat:
    """One kind of slide or scene file."""

    name: str
    """Short name, such as ``"ome-tiff"``."""
    title: str
    """The name in lists for users."""
    suffixes: tuple[str, ...]
    """File name endings in lower case, with the dot. Folders are searched for them; what a file is
    opened with is decided by its content."""
    recognizes: Callable[[SlideSource], bool]
    """Whether a file, folder or URL is of this format; should look at the content."""
    open: Callable[[SlideSource], Backend]
    """Open it; raises `atlas_wsi.UnreadableSlideError` or `atlas_wsi.UnsupportedFormatError`."""
    rank: int = 50
    """Formats are asked in this order; lower ranks first."""
    is_guess: bool = False
    """Whether only opening decides: an `UnsupportedFormatError` without a hint then leaves the file
    to the next format."""


@cache
def slide_formats() -> tuple[SlideFormat, ...]:
    """Return all formats, ours and those of other packages, in the order they are asked in."""
    found: list[SlideFormat] = []
    for module in pkgutil.iter_modules(_formats.__path__):
        found += getattr(import_module(f"{_formats.__name__}.{module.name}"), "FORMATS", ())
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            extra = entry.load()
            if not isinstance(extra, SlideFormat):
                raise TypeError(f"expected a SlideFormat, found {type(extra).__name__}")  # noqa: TRY301
        except Exception as error:  # noqa: BLE001 - a broken package must not stop the others
            package = entry.dist.name if entry.dist else "an unknown package"
            warnings.warn(
                f"The slide format {entry.name} of {package} cannot be loaded: {error}",
                stacklevel=2,
            )
        else:
            found.append(extra)
    return tuple(sorted(found, key=lambda kind: kind.rank))


def slide_suffixes(formats: Iterable[SlideFormat] | None = None) -> tuple[str, ...]:
    """Return the file name endings that folders are searched for, sorted."""
    known = slide_formats() if formats is None else formats
    return tuple(sorted({suffix for kind in known for suffix in kind.suffixes}))

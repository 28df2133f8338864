"""open_slide: look at what a file holds, not at its name, and pick the reader."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from atlas_wsi.errors import UnreadableSlideError
from atlas_wsi.slides.slide import Slide

if TYPE_CHECKING:
    from atlas_wsi.slides.backend import Backend


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
        A file, a folder (DICOM series, OME-Zarr) or a URL (OME-Zarr).
    mpp
        Micrometres a level-0 pixel, a number or `(y, x)`, instead of what the file says.
    strict
        Whether a block that cannot be decoded raises, rather than being filled with background
        and listed in ``slide.unreadable``.

    Returns
    -------
    Slide
        The lazy pyramid; also a context manager.
    """
    text = os.fspath(path)
    local = Path(text).expanduser().absolute()
    return Slide(_open_path(local), str(local), mpp=mpp, strict=strict)


def _open_path(path: Path) -> Backend:
    """Pick the reader of a local path."""
    from atlas_wsi.slides.openslide import open_openslide

    if not path.exists():
        raise UnreadableSlideError(f"{path} does not exist.")
    return open_openslide(path)

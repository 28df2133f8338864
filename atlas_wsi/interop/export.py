"""Results in the formats of other programs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas_wsi.errors import AtlasError, SlideError
from atlas_wsi.files import folder_name
from atlas_wsi.heatmap.heatmap import Heatmap
from atlas_wsi.heatmap.result import open_result
from atlas_wsi.interop.formats import EXPORT_FORMATS
from atlas_wsi.progress import Progress, silent
from atlas_wsi.slides.open import open_slide

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray

THUMBNAIL_PX = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A result that has been written."""

    path: Path
    """The file or folder."""
    warnings: tuple[str, ...] = ()
    """What its reader should know."""


def export_result(
    result: Heatmap | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    to: str,
    slide: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write a result in the format of another program, complete or not at all.

    Parameters
    ----------
    result
        What `predict` returned, or the folder it was written to.
    path
        File to write, or the folder in which a file named after the slide is written.
    to
        A name in `EXPORT_FORMATS`.
    slide
        Path of the slide, if it was moved since; used by formats that show its pixels.
    overwrite
        Replace an existing file.
    progress
        Receives the steps done.

    Returns
    -------
    Exported
        The file, and warnings about it.

    Raises
    ------
    ValueError
        If the format is unknown.
    """
    if to not in EXPORT_FORMATS:
        raise ValueError(f"Unknown format {to!r}; expected one of {list(EXPORT_FORMATS)}.")
    form, report = EXPORT_FORMATS[to], progress or silent
    n_steps = 2 + form.shows_slide
    report("export", 0, n_steps)
    heatmap = result if isinstance(result, Heatmap) else open_result(result)
    final = Path(path)
    if final.suffix.lower() not in form.suffixes:
        final /= f"{folder_name(heatmap.slide.name)}{form.suffixes[0]}"
    form.check_free(final, overwrite=overwrite)
    report("export", 1, n_steps)
    pixels: NDArray[Any] | None = None
    warnings: tuple[str, ...] = ()
    if form.shows_slide:
        pixels, warnings = _thumbnail(heatmap, slide)
        report("export", 2, n_steps)
    warnings += tuple(form.write_whole(heatmap, final, pixels, overwrite=overwrite))
    report("export", n_steps, n_steps)
    return Exported(path=final, warnings=warnings)


def _thumbnail(
    heatmap: Heatmap, slide: str | os.PathLike[str] | None
) -> tuple[NDArray[Any] | None, tuple[str, ...]]:
    """Read the thumbnail; a slide that was moved is left out with a warning."""
    try:
        with open_slide(slide or heatmap.slide.path, **heatmap.slide.opening) as opened:
            if opened.shape != heatmap.slide.shape:
                raise SlideError(
                    f"{opened.path} has {opened.shape[1]} x {opened.shape[0]} pixels, the result "
                    f"was made from {heatmap.slide.shape[1]} x {heatmap.slide.shape[0]}.",
                    hint="Give the slide that the result was made from.",
                )
            return opened.thumbnail(THUMBNAIL_PX), ()
    except AtlasError as error:
        if slide is not None:
            raise
        reason = f"without the slide's pixels ({error.message}); --slide gives its current path."
        return None, (f"{heatmap.slide.name} is written {reason}",)

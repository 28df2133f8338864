"""Results written as other programs read them."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas_wsi.errors import (
    AtlasError,
    CorruptResultError,
    OutputNotWritableError,
    ResultExistsError,
    SlideError,
)
from atlas_wsi.files import folder_name, write_whole
from atlas_wsi.heatmap.formats.geojson import write_geojson
from atlas_wsi.heatmap.formats.geotiff import write_geotiff
from atlas_wsi.heatmap.formats.png import write_png
from atlas_wsi.heatmap.heatmap import Heatmap
from atlas_wsi.heatmap.write import SUMMARY, open_result
from atlas_wsi.interop.dsa import write_dsa
from atlas_wsi.interop.html import write_html
from atlas_wsi.interop.spatial import write_spatialdata
from atlas_wsi.interop.tiles import write_csv, write_hdf5
from atlas_wsi.progress import Progress, silent
from atlas_wsi.slides.open import open_slide

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Writer = Callable[[Heatmap, Path, NDArray[Any] | None], tuple[str, ...]]

THUMBNAIL_PX = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A way in which results leave."""

    suffixes: tuple[str, ...]
    """What its files are named, the usual one first."""
    write: Writer
    """Writes a result to a path that does not exist."""
    shows_slide: bool = False
    """Whether the slide's pixels are part of it."""


EXPORTS = {
    "qupath": Format(
        suffixes=(".geojson", ".json"),
        write=lambda heatmap, path, _: write_geojson(_in_pixels(heatmap), path),
    ),
    "cog": Format(
        suffixes=(".tif", ".tiff"), write=lambda heatmap, path, _: write_geotiff(heatmap, path)
    ),
    "dsa": Format(suffixes=(".json",), write=lambda heatmap, path, _: write_dsa(heatmap, path)),
    "wsinfer-csv": Format(
        suffixes=(".csv",), write=lambda heatmap, path, _: write_csv(heatmap, path)
    ),
    "trident-h5": Format(
        suffixes=(".h5", ".hdf5"),
        write=lambda heatmap, path, _: write_hdf5(heatmap, path, "trident"),
    ),
    "clam-h5": Format(
        suffixes=(".h5", ".hdf5"), write=lambda heatmap, path, _: write_hdf5(heatmap, path, "clam")
    ),
    "stamp-h5": Format(
        suffixes=(".h5", ".hdf5"), write=lambda heatmap, path, _: write_hdf5(heatmap, path, "stamp")
    ),
    "spatialdata": Format(suffixes=(".zarr",), write=write_spatialdata, shows_slide=True),
    "png": Format(suffixes=(".png",), write=write_png, shows_slide=True),
    "html": Format(suffixes=(".html", ".htm"), write=write_html, shows_slide=True),
}
"""What `export_result` writes, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A result that has been written."""

    path: Path
    """The file or folder."""
    warnings: tuple[str, ...] = ()
    """What whoever opens it should know."""


def export_result(
    result: Heatmap | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    to: str,
    slide: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write a result as another program reads it; it is there whole or not at all.

    Parameters
    ----------
    result
        What `predict` returned, or the folder it was written to.
    path
        File to write, or the folder in which a file named after the slide is written.
    to
        A name in `EXPORTS`.
    slide
        Where the slide is, if it was moved since; needed by what shows its pixels.
    overwrite
        Replace what is there.
    progress
        Told how far it is.

    Returns
    -------
    Exported
        The file, and what to know of it.

    Raises
    ------
    ValueError
        If there is no such format.
    """
    if to not in EXPORTS:
        raise ValueError(f"There is no export {to!r}, there are {list(EXPORTS)}.")
    chosen, report = EXPORTS[to], progress or silent
    n_steps = 2 + chosen.shows_slide
    report("export", 0, n_steps)
    heatmap = result if isinstance(result, Heatmap) else open_result(result)
    final = export_path(path, heatmap.slide.name, to=to)
    _check_free(final, to, overwrite=overwrite)
    report("export", 1, n_steps)
    pixels: NDArray[Any] | None = None
    warnings: tuple[str, ...] = ()
    if chosen.shows_slide:
        pixels, warnings = _thumbnail(heatmap, slide)
        report("export", 2, n_steps)
    with write_whole(final, overwrite=overwrite) as partial:
        warnings += chosen.write(heatmap, partial, pixels)
    report("export", n_steps, n_steps)
    return Exported(path=final, warnings=warnings)


def find_results(path: str | os.PathLike[str]) -> list[Path]:
    """List the results in a folder."""
    folder = Path(path)
    if (folder / SUMMARY).is_file():
        return [folder]
    found = [p.parent for p in folder.glob(f"*/{SUMMARY}") if not p.parent.name.startswith(".")]
    if not found:
        raise CorruptResultError(
            f"{folder} holds no result: there is no {SUMMARY} in it.",
            hint="Give a folder that `atlas-wsi predict` or `atlas-wsi batch` wrote.",
        )
    return sorted(found)


def export_path(path: str | os.PathLike[str], name: str, *, to: str) -> Path:
    """Tell where an export goes."""
    path, suffixes = Path(path), EXPORTS[to].suffixes
    if path.suffix.lower() in suffixes:
        return path
    return path / f"{folder_name(name)}{suffixes[0]}"


def _check_free(final: Path, to: str, *, overwrite: bool) -> None:
    """Refuse before the work what could not be put in place after it."""
    above = next(p for p in (final.parent, *final.parents) if p.exists())
    if not above.is_dir():
        raise OutputNotWritableError(f"{above} is a file, expected a folder.")
    if not os.path.lexists(final):
        return
    if not overwrite:
        raise ResultExistsError(f"{final} is there.", hint="--overwrite replaces it.")
    is_folder = to == "spatialdata"
    if final.is_dir() and not (is_folder and _is_spatialdata(final)):
        raise ResultExistsError(f"{final} is a folder that was not exported; it is left alone.")
    if is_folder and not final.is_dir():
        raise ResultExistsError(f"{final} is a file, expected none or a SpatialData store.")


def _is_spatialdata(folder: Path) -> bool:
    try:
        return "spatialdata_attrs" in (folder / "zarr.json").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False


def _thumbnail(
    heatmap: Heatmap, slide: str | os.PathLike[str] | None
) -> tuple[NDArray[Any] | None, tuple[str, ...]]:
    """Read the slide in small; one that was moved is left out with a warning."""
    try:
        with open_slide(slide or heatmap.slide.path, mpp=heatmap.slide.mpp) as opened:
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
        left_out = f"without the slide's pixels ({error.message}); --slide says where it is now."
        return None, (f"{heatmap.slide.name} is written {left_out}",)


def _in_pixels(heatmap: Heatmap) -> Heatmap:
    """Forget where a scene lies on Earth: QuPath knows pixels only."""
    return replace(heatmap, slide=heatmap.slide.model_copy(update={"crs": None, "transform": None}))

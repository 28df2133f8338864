"""The formats of results: one table, read by results, exports and the command line.

A format is named by its module, which is imported when it is used: reading the table is cheap.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from atlas_wsi.errors import OutputNotWritableError, ResultExistsError
from atlas_wsi.files import write_whole

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from atlas_wsi.heatmap.heatmap import Heatmap


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A way to write a result."""

    writer: str
    """``module:function``, called with a heatmap and a path that does not exist."""
    file: str = ""
    """Name in the folder of a result."""
    suffixes: tuple[str, ...] = ()
    """Of exported files, the usual one first."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the writer."""
    shows_slide: bool = False
    """Whether the writer also takes the slide's pixels."""
    is_for_scenes: bool = False
    """Whether only results of georeferenced scenes have it by default."""
    marker: str = ""
    """For folders: text of their ``zarr.json``, by which they may be replaced."""

    def write(self, heatmap: Heatmap, path: Path, thumbnail: NDArray[Any] | None) -> list[str]:
        """Write a result; return warnings about what was left out."""
        pixels = (thumbnail,) if self.shows_slide else ()
        module, _, function = self.writer.partition(":")
        write = getattr(import_module(module), function)
        return list(write(heatmap, path, *pixels, **self.options))

    def write_whole(
        self,
        heatmap: Heatmap,
        path: Path,
        thumbnail: NDArray[Any] | None = None,
        *,
        overwrite: bool = False,
    ) -> list[str]:
        """Write a result to a file of its own, complete or not at all."""
        self.check_free(path, overwrite=overwrite)
        with write_whole(path, overwrite=overwrite) as partial:
            return self.write(heatmap, partial, thumbnail)

    def check_free(self, path: Path, *, overwrite: bool) -> None:
        """Refuse before the work what could not be written after it."""
        above = next(p for p in (path.parent, *path.parents) if p.exists())
        if not above.is_dir():
            raise OutputNotWritableError(f"{above} is a file, expected a folder.")
        if not os.path.lexists(path):
            return
        if not overwrite:
            raise ResultExistsError(f"{path} exists already.", hint="Replace it with --overwrite.")
        if path.is_dir() and not self._made(path):
            raise ResultExistsError(
                f"{path} is a folder that was not exported; it was not changed."
            )
        if self.marker and not path.is_dir():
            raise ResultExistsError(f"{path} is a file, expected nothing or a folder.")

    def _made(self, folder: Path) -> bool:
        try:
            text = (folder / "zarr.json").read_text(encoding="utf-8")
        except (OSError, ValueError):
            return False
        return bool(self.marker) and self.marker in text


_HERE = "atlas_wsi.heatmap.formats"
RESULT_FORMATS = {
    "ome-zarr": Format(
        file="heatmap.ome.zarr",
        suffixes=(".zarr",),
        marker="multiscales",
        writer=f"{_HERE}.omezarr:write_omezarr",
    ),
    "geotiff": Format(
        file="heatmap.tif", writer=f"{_HERE}.geotiff:write_geotiff", is_for_scenes=True
    ),
    "png": Format(file="heatmap.png", writer=f"{_HERE}.png:write_png", shows_slide=True),
    "geojson": Format(file="regions.geojson", writer=f"{_HERE}.geojson:write_geojson"),
}
"""What a result's folder may hold, by name. The summary, ``"json"``, is always written, and last:
it lists the others."""


def choose_formats(names: Collection[str] | None, *, is_scene: bool = True) -> dict[str, Format]:
    """Choose formats by name, or those that suit a slide or a scene."""
    if names is None:
        return {n: form for n, form in RESULT_FORMATS.items() if is_scene or not form.is_for_scenes}
    if unknown := set(names) - {*RESULT_FORMATS, "json"}:
        known = [*RESULT_FORMATS, "json"]
        raise ValueError(f"Unknown formats {sorted(unknown)}; expected some of {known}.")
    return {name: form for name, form in RESULT_FORMATS.items() if name in names}

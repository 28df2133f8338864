"""`atlas-wsi view`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from atlas_wsi.errors import AtlasError
from atlas_wsi.files import require_extra


def view(
    slide: Annotated[str, typer.Argument(help="Slide or scene.")],
    result: Annotated[
        Path | None, typer.Argument(help="Folder of its result, to be laid over it.")
    ] = None,
) -> None:
    """Open a slide, and its result over it, in napari."""
    from atlas_wsi.heatmap.result import open_result
    from atlas_wsi.slides.open import open_slide

    open_slide(slide).close()  # what cannot be read is told here, not in a window
    if result is not None:
        open_result(result)
    _require_window()
    import napari

    from napari_atlas_wsi._open import open_viewer

    open_viewer(slide, None if result is None else str(result))
    napari.run()


def _require_window() -> None:
    """Tell in words what Qt would say by ending the process."""
    for package in ("napari", "qtpy"):
        require_extra(package, "napari", to="Showing slides", error=AtlasError)
    told = ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")
    if sys.platform == "linux" and not any(os.environ.get(name) for name in told):
        raise AtlasError(
            "There is no screen to open a window on.",
            hint="Run it on a desktop, or over `ssh -X`, or under xvfb-run.",
        )

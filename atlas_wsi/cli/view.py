"""`atlas-wsi view`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from atlas_wsi.cli import options
from atlas_wsi.errors import AtlasError


def view(
    slide: options.SlidePath,
    result: Annotated[
        Path | None,
        typer.Argument(metavar="RESULT", help="Folder of its result, to show on top."),
    ] = None,
) -> None:
    """Show a slide in napari, with its result on top."""
    from atlas_wsi import open_result, open_slide

    open_slide(slide).close()  # what cannot be read is reported here, not in a window
    if result is not None:
        open_result(result)
    _require_window()
    import napari

    from napari_atlas_wsi._open import open_viewer

    open_viewer(slide, None if result is None else str(result))
    napari.run()


def _require_window() -> None:
    """Refuse what would make Qt end the process."""
    try:
        import napari  # noqa: F401
        import qtpy  # noqa: F401
    except ImportError as error:
        raise AtlasError(
            f"Showing slides needs napari, which is not installed ({error}).",
            hint="pip install 'atlas-wsi[napari]'",
        ) from error
    screens = ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")
    if sys.platform == "linux" and not any(os.environ.get(name) for name in screens):
        raise AtlasError(
            "No display is available.",
            hint="Run it on a desktop, or over `ssh -X`, or under xvfb-run.",
        )

"""What napari calls to open slides, scenes and results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import napari

from atlas_wsi import SlideError, open_result, open_slide
from napari_atlas_wsi._layers import FRAME_KEY, heatmap_layers, slide_layers
from napari_atlas_wsi._shown import install_hover

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from napari.utils.events import Event

    from napari_atlas_wsi._layers import LayerTuple


def get_reader(
    path: str | Sequence[str],
) -> Callable[[str | Sequence[str]], list[LayerTuple]] | None:
    """Return the reader of a path that may be a slide, a scene or a result, without reading it."""
    paths = [path] if isinstance(path, str) else list(path)
    return read if paths and all(_may_read(p) for p in paths) else None


def read(path: str | Sequence[str]) -> list[LayerTuple]:
    """Open slides and results as layers."""
    layers: list[LayerTuple] = []
    for file in [path] if isinstance(path, str) else path:
        if _is_result(Path(file)):
            layers += heatmap_layers(open_result(file))
        else:
            layers += slide_layers(open_slide(file))
    viewer = napari.current_viewer()
    shown = [] if viewer is None else [layer.metadata for layer in viewer.layers]
    _refuse_mixture([*shown, *(facts["metadata"] for _, facts, _ in layers)])
    if viewer is not None:
        viewer.layers.events.inserted.connect(_added)
    return layers


def _added(event: Event) -> None:
    install_hover(event.value)


def _refuse_mixture(metadata: list[dict[str, Any]]) -> None:
    """One window shows micrometers or a map: both at once is beyond its range."""
    units = {facts[FRAME_KEY].unit for facts in metadata if FRAME_KEY in facts}
    if len(units) > 1:
        raise SlideError(
            f"Slides and scenes measured in {' and '.join(sorted(units))} cannot share a window.",
            hint="Open it in another window.",
        )


def _is_result(path: Path) -> bool:
    return path.is_dir() and (path / "summary.json").is_file()


def _may_read(path: str) -> bool:
    if "://" in path:
        return True
    folder = Path(path)
    if not folder.is_dir() or _is_result(folder):
        return True
    names = ("zarr.json", ".zgroup", ".zattrs")
    return any((folder / n).exists() for n in names) or any(folder.glob("*.dcm"))

"""Slides and heatmaps as napari layers; nothing here needs a window."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from napari_atlas_wsi._frame import Frame

if TYPE_CHECKING:
    from atlas_wsi import Grid, Heatmap, Slide

    LayerTuple = tuple[Any, dict[str, Any], str]

SLIDE_KEY = "atlas_wsi_slide"
RESULT_KEY = "atlas_wsi_result"
PART_KEY = "atlas_wsi_part"
FRAME_KEY = "atlas_wsi_frame"


def slide_layers(slide: Slide) -> list[LayerTuple]:
    """Show a slide as a lazy pyramid."""
    frame = Frame.of(slide)
    common: dict[str, Any] = {
        **frame.placement(),
        "multiscale": True,
        "cache": False,  # the slide keeps decoded tiles, bounded in bytes
        "metadata": {SLIDE_KEY: slide, FRAME_KEY: frame},
    }
    if slide.n_channels == 3 and slide.dtype == np.uint8:
        return [(list(slide.levels), {**common, "name": slide.name, "rgb": True}, "image")]
    thumbnail = slide.thumbnail(512)
    colors = ("gray",) if slide.n_channels == 1 else ("red", "green", "blue")
    layers = []
    for k in range(slide.n_channels):
        values = thumbnail[..., k]
        low, high = np.nanpercentile(values, (1, 99)) if values.size else (0, 1)
        limits = (float(low), float(high) if high > low else float(low) + 1)
        data = [level[..., k] for level in slide.levels]
        facts = {"name": f"{slide.name} [{k + 1}]", "contrast_limits": limits}
        color = colors[k] if k < len(colors) else "gray"
        look = {"blending": "additive", "visible": k < 3, "colormap": color}
        layers.append((data, {**common, **facts, **look}, "image"))
    return layers


def heatmap_layers(
    heatmap: Heatmap, frame: Frame | None = None, *, shown: int | None = None
) -> list[LayerTuple]:
    """Show a result: tissue, class map, probabilities of one class."""
    from napari.utils.colormaps import DirectLabelColormap

    if shown is None:
        shown = int(np.argmax(list(heatmap.areas().values())))
    frame = frame or Frame.of(heatmap.slide)
    name, grid, n = heatmap.slide.name, heatmap.grid, len(heatmap.classes)

    def part(key: str, grid: Grid, **look: Any) -> dict[str, Any]:
        metadata = {RESULT_KEY: heatmap, PART_KEY: key, FRAME_KEY: frame}
        return {**frame.placement(grid.step_px, grid.origin_px), "metadata": metadata, **look}

    colors: dict[int | None, str] = {None: "transparent", 0: "transparent"}
    tissue = part("tissue", heatmap.tissue.grid, name=f"{name}: tissue", opacity=0.9, visible=False)
    classes = part(
        "classes",
        grid,
        name=f"{name}: classes",
        colormap=DirectLabelColormap(color_dict=colors | dict(enumerate(heatmap.colors, 1))),
        features={"index": list(range(n + 1)), "class": ["not predicted", *heatmap.classes]},
        opacity=0.5,
        visible=False,
    )
    probability = part(
        "probability",
        grid,
        name=f"{name}: {heatmap.classes[shown]}",
        colormap="turbo",
        contrast_limits=(0, 1),
        opacity=0.5,
        blending="translucent_no_depth",
        interpolation2d="nearest",
    )
    labels = (heatmap.argmax() + 1).astype(np.uint8 if n < 255 else np.uint16)
    return [
        (heatmap.tissue.mask.astype(np.uint8), tissue, "labels"),
        (labels, classes, "labels"),
        (heatmap.probabilities[shown].astype(np.float32), probability, "image"),
    ]


def cell_at(grid: Grid, y: float, x: float) -> tuple[int, int]:
    """Return row and column of the cell at a level-0 position."""
    row, col = (
        int((at - origin) // step)
        for at, origin, step in zip((y, x), grid.origin_px, grid.step_px, strict=True)
    )
    return row, col


def describe(heatmap: Heatmap, y: float, x: float) -> str:
    """Describe the prediction at a position."""
    grid = heatmap.grid
    row, col = cell_at(grid, y, x)
    if not (0 <= row < grid.shape[0] and 0 <= col < grid.shape[1]):
        return ""
    values = heatmap.probabilities[:, row, col].astype(np.float32)
    if np.isnan(values).any():
        return ""
    best = int(values.argmax())
    return f"{heatmap.classes[best]} {values[best]:.2f} at {format_position(heatmap.slide, y, x)}"


def format_position(slide: Any, y: float, x: float) -> str:
    """Format a position in the units of the field."""
    if slide.is_georeferenced:
        a, b, c, d, e, f = tuple(slide.transform)[:6]
        digits = 5 if max(abs(a), abs(e)) < 0.01 else 0  # degrees
        return f"x {a * x + b * y + c:.{digits}f}, y {d * x + e * y + f:.{digits}f}"
    if slide.mpp is None:
        return f"y {y:.0f}, x {x:.0f} px"
    return f"y {y * slide.mpp[0]:.0f}, x {x * slide.mpp[1]:.0f} um"

"""Slides and heatmaps as napari layers; nothing here needs a window."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from napari_atlas_wsi._frame import Frame

if TYPE_CHECKING:
    from atlas_wsi import Heatmap, Slide

    LayerTuple = tuple[Any, dict[str, Any], str]

SLIDE_KEY = "atlas_wsi_slide"
RESULT_KEY = "atlas_wsi_result"
PART_KEY = "atlas_wsi_part"
FRAME_KEY = "atlas_wsi_frame"
UNPREDICTED = 0


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
    layers = []
    for k in range(slide.n_channels):
        values = thumbnail[..., k]
        low, high = np.nanpercentile(values, (1, 99)) if values.size else (0, 1)
        limits = (float(low), float(high) if high > low else float(low) + 1)
        data = [level[..., k] for level in slide.levels]
        facts = {"name": f"{slide.name} [{k + 1}]", "contrast_limits": limits}
        look = {"blending": "additive", "visible": k < 3, "colormap": _channel_color(slide, k)}
        layers.append((data, {**common, **facts, **look}, "image"))
    return layers


def heatmap_layers(
    heatmap: Heatmap, frame: Frame | None = None, *, shown: int | None = None
) -> list[LayerTuple]:
    """Show a result: tissue, class map, probabilities of one class."""
    if shown is None:
        shown = int(np.argmax(list(heatmap.areas().values())))
    frame = frame or Frame.of(heatmap.slide)
    placement = frame.placement(heatmap.grid.step_px, heatmap.grid.origin_px)
    mask = heatmap.tissue

    def part(name: str) -> dict[str, Any]:
        return {"metadata": {RESULT_KEY: heatmap, PART_KEY: name, FRAME_KEY: frame}}

    name = heatmap.slide.name
    return [
        (
            mask.mask.astype(np.uint8),
            {
                **frame.placement(mask.grid.step_px, mask.grid.origin_px),
                **part("tissue"),
                "name": f"{name}: tissue",
                "opacity": 0.9,
                "visible": False,
            },
            "labels",
        ),
        (
            (heatmap.argmax() + 1).astype(np.uint8 if len(heatmap.classes) < 255 else np.uint16),
            {
                **placement,
                **part("classes"),
                "name": f"{name}: classes",
                "colormap": class_colormap(heatmap),
                "features": {
                    "index": list(range(len(heatmap.classes) + 1)),
                    "class": ["not predicted", *heatmap.classes],
                },
                "opacity": 0.5,
                "visible": False,
            },
            "labels",
        ),
        (
            heatmap.probabilities[shown].astype(np.float32),
            {
                **placement,
                **part("probability"),
                "name": f"{name}: {heatmap.classes[shown]}",
                "colormap": "turbo",
                "contrast_limits": (0, 1),
                "opacity": 0.5,
                "blending": "translucent_no_depth",
                "interpolation2d": "nearest",
            },
            "image",
        ),
    ]


def class_colormap(heatmap: Heatmap) -> Any:
    """Return the colors of a class map, in which 0 is transparent."""
    from napari.utils.colormaps import DirectLabelColormap

    colors: dict[int | None, Any] = {None: "transparent", UNPREDICTED: "transparent"}
    return DirectLabelColormap(color_dict=colors | dict(enumerate(heatmap.colors, 1)))


def describe(heatmap: Heatmap, y: float, x: float) -> str:
    """Describe the prediction at a position."""
    grid = heatmap.grid
    row = int((y - grid.origin_px[0]) // grid.step_px[0])
    col = int((x - grid.origin_px[1]) // grid.step_px[1])
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


def _channel_color(slide: Slide, k: int) -> str:
    if slide.n_channels == 1:
        return "gray"
    return ("red", "green", "blue")[k] if k < 3 else "gray"

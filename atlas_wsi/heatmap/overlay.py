"""How a result looks: the slide in 8 bits, and the classes to lay over it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from atlas_wsi.heatmap.heatmap import Heatmap

_FAINTEST, _STRONGEST = 0.22, 0.72  # opacity at chance and at certainty


def paint_classes(heatmap: Heatmap) -> NDArray[np.uint8]:
    """Color each cell by its most probable class, opaque by its probability: `(rows, cols, 4)`."""
    winner = heatmap.argmax()
    known = winner >= 0
    top = heatmap.probabilities[:, known].astype(np.float32).max(axis=0)
    chance = 1 / len(heatmap.classes)
    certainty = np.clip((top - chance) / max(1 - chance, 1e-6), 0, 1)
    colors = np.array([list(bytes.fromhex(color[1:])) for color in heatmap.colors], np.uint8)
    opacity = 255 * (_FAINTEST + (_STRONGEST - _FAINTEST) * certainty)
    rgba = np.zeros((*winner.shape, 4), np.uint8)
    rgba[known, :3] = colors[winner[known]]
    rgba[known, 3] = opacity.round().astype(np.uint8)
    return rgba


def extent_on_slide(heatmap: Heatmap) -> dict[str, float]:
    """Locate the cells on a picture of the slide, in widths of the slide."""
    grid, cols = heatmap.grid, heatmap.slide.shape[1]
    return {
        "x": grid.origin_px[1] / cols,
        "y": grid.origin_px[0] / cols,
        "width": grid.shape[1] * grid.step_px[1] / cols,
        "height": grid.shape[0] * grid.step_px[0] / cols,
    }


def backdrop(heatmap: Heatmap, thumbnail: NDArray[Any] | None) -> NDArray[np.uint8]:
    """Convert a thumbnail of any dtype, or else the tissue mask, to 8 bits: `(rows, cols, 3)`."""
    if thumbnail is None:
        gray = np.where(heatmap.tissue.mask, 222, 250).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=2)
    shown = thumbnail[..., None] if thumbnail.ndim == 2 else thumbnail
    shown = shown[..., :3] if shown.shape[-1] >= 3 else shown[..., :1].repeat(3, axis=2)
    is_dim = heatmap.slide.is_georeferenced and np.percentile(shown, 98) < 128
    if shown.dtype == np.uint8 and not is_dim:
        return shown
    return _stretch(shown)


def _stretch(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Bring the middle 96% of each channel to 0-255; nodata (NaN, and black in all) stays out."""
    values = values.astype(np.float32)
    known = np.isfinite(values).all(axis=-1) & (values != 0).any(axis=-1)
    shown = np.full(values.shape, 255, np.uint8)
    if known.any():
        low, high = np.percentile(values[known], (2, 98), axis=0)
        scaled = (values[known] - low) / np.maximum(high - low, 1e-9)
        shown[known] = np.clip(scaled * 255, 0, 255)
    return shown

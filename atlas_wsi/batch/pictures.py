"""Pictures of one slide for the report: tiles to zoom into, the classes over them, a small one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from atlas_wsi.heatmap.formats.png import backdrop

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from atlas_wsi.heatmap.heatmap import Heatmap

TILE_PX = 512
SMALL_PX = 360
_QUALITY = 82
_OVERLAY_PX = 2048
_FAINTEST, _STRONGEST = 60, 215


def write_pictures(
    heatmap: Heatmap, thumbnail: NDArray[Any] | None, folder: Path
) -> dict[str, Any]:
    """Write the pictures of a slide.

    `thumbnail`: The slide in small, `(rows, cols, channels)` in its own dtype; None draws the
    tissue mask.
    """
    picture = Image.fromarray(backdrop(heatmap, thumbnail))
    levels = _write_tiles(picture, folder / "tiles")
    classes, where = overlay(heatmap), place(heatmap)
    classes.save(folder / "classes.png", optimize=True)
    small = picture.convert("RGB")
    small.thumbnail((SMALL_PX, SMALL_PX))
    over = classes.resize(
        (max(1, round(where["width"] * small.width)), max(1, round(where["height"] * small.width))),
        Image.Resampling.NEAREST,
    )
    over.putalpha(over.getchannel("A").point(lambda alpha: alpha * 2 // 3))
    at = (round(where["x"] * small.width), round(where["y"] * small.width))
    small.paste(over, at, over)
    small.save(folder / "small.jpg", quality=_QUALITY)
    return {"width": picture.width, "height": picture.height, "levels": levels, "classes": where}


def _write_tiles(picture: Image.Image, folder: Path) -> int:
    """Write a Deep Zoom pyramid; level 0 is one pixel, each next level twice as large."""
    top = max(0, math.ceil(math.log2(max(picture.size))))
    for level in range(top, -1, -1):
        tiles = folder / str(level)
        tiles.mkdir(parents=True)
        for row in range(math.ceil(picture.height / TILE_PX)):
            for col in range(math.ceil(picture.width / TILE_PX)):
                left, upper = col * TILE_PX, row * TILE_PX
                right = min(left + TILE_PX, picture.width)
                lower = min(upper + TILE_PX, picture.height)
                tile = picture.crop((left, upper, right, lower))
                tile.save(tiles / f"{col}_{row}.jpg", quality=_QUALITY)
        half = (math.ceil(picture.width / 2), math.ceil(picture.height / 2))
        picture = picture.resize(half, Image.Resampling.BOX)
    return top


def overlay(heatmap: Heatmap) -> Image.Image:
    """Color cells by class, more strongly the more probable."""
    winner = heatmap.argmax()
    known = winner >= 0
    top = np.where(known, heatmap.probabilities.astype(np.float32), 0).max(axis=0)
    chance = 1 / len(heatmap.classes)
    sure = np.clip((top - chance) / max(1e-6, 1 - chance), 0, 1)
    colors = np.array([list(bytes.fromhex(c[1:])) for c in heatmap.colors], np.uint8)
    rgba = np.zeros((*winner.shape, 4), np.uint8)
    rgba[known, :3] = colors[winner[known]]
    rgba[known, 3] = (_FAINTEST + (_STRONGEST - _FAINTEST) * sure[known]).astype(np.uint8)
    picture = Image.fromarray(rgba)
    times = max(1, min(8, _OVERLAY_PX // max(picture.size)))  # so that cells stay square and sharp
    return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)


def place(heatmap: Heatmap) -> dict[str, float]:
    """Tell where the classes lie on a picture of the slide."""
    grid, cols = heatmap.grid, heatmap.slide.shape[1]
    return {
        "x": grid.origin_px[1] / cols,
        "y": grid.origin_px[0] / cols,
        "width": grid.shape[1] * grid.step_px[1] / cols,
        "height": grid.shape[0] * grid.step_px[0] / cols,
    }

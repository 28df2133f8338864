"""Images of one slide for the report: a tile pyramid, the class map, a thumbnail."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from PIL import Image

from atlas_wsi.heatmap.overlay import backdrop, extent_on_slide, paint_classes

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from atlas_wsi.heatmap.heatmap import Heatmap

TILE_PX = 512
SMALL_PX = 360
_QUALITY = 82
_OVERLAY_PX = 2048


def write_pictures(
    heatmap: Heatmap, thumbnail: NDArray[Any] | None, folder: Path
) -> dict[str, Any]:
    """Write the pictures of a slide, of its tissue mask if there is no thumbnail."""
    picture = Image.fromarray(backdrop(heatmap, thumbnail))
    levels = _write_tiles(picture, folder / "tiles")
    rgba, where = paint_classes(heatmap), extent_on_slide(heatmap)
    times = max(1, min(8, _OVERLAY_PX // max(rgba.shape)))  # so that cells stay square and sharp
    classes = Image.fromarray(rgba.repeat(times, axis=0).repeat(times, axis=1))
    classes.save(folder / "classes.png", optimize=True)
    small = picture.convert("RGB")
    small.thumbnail((SMALL_PX, SMALL_PX))
    over = classes.resize(
        (max(1, round(where["width"] * small.width)), max(1, round(where["height"] * small.width))),
        Image.Resampling.NEAREST,
    )
    corner = (round(where["x"] * small.width), round(where["y"] * small.width))
    small.paste(over, corner, over)
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
                end = min(left + TILE_PX, picture.width), min(upper + TILE_PX, picture.height)
                tile = picture.crop((left, upper, *end))
                tile.save(tiles / f"{col}_{row}.jpg", quality=_QUALITY)
        half = (math.ceil(picture.width / 2), math.ceil(picture.height / 2))
        picture = picture.resize(half, Image.Resampling.BOX)
    return top

"""Pictures of several classes with a dense label, made of tiles.

A slide shows several tissues beside each other; a tile shows one. Mosaics teach the dense head
where one ends: areas with random outlines, each filled with tiles of its class, and glass that
carries no label.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from atlas_wsi.training.augment import augment, vary_colors

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from atlas_wsi.training.tiles import TileSet

CELL_PX = 64
"""Side of a cell of the dense head in pixels."""

NOTHING = frozenset({"glass", "unknown"})
"""Names of classes that glass belongs to, so that a map can say that there is nothing."""

_STEP_PX = 16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mosaic:
    """A picture and what its cells show."""

    image: NDArray[np.uint8]
    """`(rows, cols, 3)`."""
    shares: NDArray[np.float32]
    """`(class, cell rows, cell cols)`: share of the cell's area; the rest is glass."""


def make_mosaic(
    tiles: TileSet,
    shape: tuple[int, int],
    rng: np.random.Generator,
    *,
    stain: bool,
    vary: bool = True,
    jitter: float = 1.0,
) -> Mosaic:
    """Make a picture of areas of several classes.

    Half of the pictures have one stain or light all over, as a slide has; in the others every
    tile has its own, so that color tells nothing.
    """
    n_classes = len(tiles.classes)
    area = _areas(shape, n_classes + int(stain), rng)  # the last number is glass
    if (area == n_classes).all():
        area[:] = rng.integers(n_classes)
    is_one_slide = bool(rng.random() < 0.5)
    rows, cols = shape
    image = np.zeros((rows, cols, 3), np.uint8)
    if stain:
        image[:] = _glass(shape, rng)
    side = tiles.images.shape[1], tiles.images.shape[2]
    wide = area.repeat(_STEP_PX, axis=0).repeat(_STEP_PX, axis=1)
    start = -rng.integers(0, side[0]), -rng.integers(0, side[1])
    by_class = [np.flatnonzero(tiles.labels == label) for label in range(n_classes)]
    for top in range(int(start[0]), rows, side[0]):
        for left in range(int(start[1]), cols, side[1]):
            there = (
                slice(max(top, 0), min(top + side[0], rows)),
                slice(max(left, 0), min(left + side[1], cols)),
            )
            part = wide[there]
            for label in np.unique(part):
                if label == n_classes:
                    continue
                tile = tiles.images[rng.choice(by_class[label])]
                if vary:
                    tile = augment(tile, rng, stain=stain, colors=0 if is_one_slide else jitter)
                cut = tile[
                    there[0].start - top : there[0].stop - top,
                    there[1].start - left : there[1].stop - left,
                ]
                image[there][part == label] = cut[part == label]
    if vary and is_one_slide:
        image = vary_colors(image, rng, stain=stain, strength=jitter)
    nothing = next((k for k, name in enumerate(tiles.classes) if name in NOTHING), n_classes)
    return Mosaic(
        image=image, shares=_shares(np.where(area == n_classes, nothing, area), n_classes)
    )


def _areas(shape: tuple[int, int], n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw areas: where each of some smooth random fields is the largest."""
    from scipy.ndimage import gaussian_filter

    rows, cols = shape[0] // _STEP_PX, shape[1] // _STEP_PX
    scale = float(np.exp(rng.uniform(np.log(4), np.log(16))))
    present = rng.permutation(n)[: int(rng.integers(1, min(n, 4) + 1))]
    if len(present) == 1 and present[0] == n - 1:
        present = np.arange(n)
    fields = np.full((n, rows, cols), -np.inf)
    for i in present:
        noise = gaussian_filter(rng.normal(size=(rows, cols)), scale, mode="wrap")
        fields[i] = noise / noise.std() + rng.normal(0, 0.3)
    return np.argmax(fields, axis=0)


def _shares(area: NDArray[np.int64], n_classes: int) -> NDArray[np.float32]:
    cell = CELL_PX // _STEP_PX
    rows, cols = area.shape[0] // cell, area.shape[1] // cell
    one_hot = area[None] == np.arange(n_classes)[:, None, None]
    blocks = one_hot.reshape(n_classes, rows, cell, cols, cell)
    return blocks.mean(axis=(2, 4)).astype(np.float32)


def _glass(shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.uint8]:
    light = rng.uniform(222, 250) + rng.uniform(-6, 6, 3)
    slope = np.linspace(-1, 1, shape[0])[:, None, None] * rng.uniform(-5, 5)
    noise = rng.normal(0, rng.uniform(0.5, 3), (*shape, 3))
    return np.clip(light + slope + noise, 0, 255).astype(np.uint8)

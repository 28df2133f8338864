"""Draw the pictures of docs/concepts.md from the sample slide.

python scripts/concept_pictures.py
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import atlas_wsi
from atlas_wsi.tissue.windows import plan_windows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

IMAGES = Path(__file__).parents[1] / "docs" / "images"
PLACE = (1850, 1150)  # y, x: an edge of the epidermis
INK = "#3f51b5"


def main() -> None:
    """Draw all pictures."""
    with atlas_wsi.open_slide(atlas_wsi.fetch_sample()) as slide:
        draw_levels(slide)
        draw_windows(slide)
        draw_scales(slide)


def draw_levels(slide: atlas_wsi.Slide) -> None:
    """Show one place at three resolutions, with the same number of pixels."""
    figure = Figure(figsize=(9, 3.3), layout="constrained")
    for axes, mpp, name in zip(
        figure.subplots(1, 3), (4.0, 1.0, 0.5), ("2.5x", "10x", "20x"), strict=True
    ):
        half = 128 * mpp / slide.mpp[0]  # level-0 pixels
        y, x = (
            int(np.clip(center - half, 0, n - 2 * half))
            for center, n in zip(PLACE, slide.shape, strict=True)
        )
        axes.imshow(slide.read_region(y=y, x=x, height=256, width=256, mpp=mpp))
        axes.set_title(f"{mpp:g} um/px, about {name}: {256 * mpp / 1000:.2f} mm wide", fontsize=9)
        axes.axis("off")
    figure.savefig(IMAGES / "concept-resolution.png", dpi=90)


def draw_windows(slide: atlas_wsi.Slide) -> None:
    """Show the windows that are read."""
    mask = atlas_wsi.tissue_mask(slide)
    model = atlas_wsi.load_model("lung-he")
    windows = plan_windows(slide.shape, slide.mpp, mask, mpp=model.card.mpp)
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        _show(axes, slide)
    rows, cols = slide.shape
    left.contour(
        np.linspace(0, cols, mask.mask.shape[1]), np.linspace(0, rows, mask.mask.shape[0]),
        mask.mask, [0.5], colors=INK, linewidths=0.8,
    )  # fmt: skip
    height, width = windows.grid.step_px
    for row, col in np.argwhere(windows.active):
        corner = (col * width, row * height)
        right.add_patch(Rectangle(corner, width, height, fill=False, color=INK))
    left.set_title("tissue", fontsize=10)
    right.set_title(
        f"{windows.n_active} windows of 256 px at {model.card.mpp:g} um/px", fontsize=10
    )
    figure.savefig(IMAGES / "concept-windows.png", dpi=80)


def draw_scales(slide: atlas_wsi.Slide) -> None:
    """Show what one cell attends to on the coarse scales."""
    result = atlas_wsi.predict(slide, context=True)
    maps = result.context.attention(y=PLACE[0], x=PLACE[1])
    figure = Figure(figsize=(3.6 * len(maps), 4.6), layout="constrained")
    for axes, one in zip(np.atleast_1d(figure.subplots(1, len(maps))), maps, strict=True):
        _show(axes, slide)
        (step_y, step_x), (y, x) = one.grid.step_px, one.grid.origin_px
        rows, cols = one.weights.shape
        axes.imshow(
            one.weights, cmap="magma", alpha=0.6, interpolation="nearest",
            extent=(x, x + cols * step_x, y + rows * step_y, y),
        )  # fmt: skip
        axes.plot(PLACE[1], PLACE[0], "o", color="#ffffff", markeredgecolor="#000000")
        axes.set_title(f"tokens of {step_y * slide.mpp[0]:.0f} um", fontsize=10)
        axes.set(xlim=(0, slide.shape[1]), ylim=(slide.shape[0], 0))
    figure.savefig(IMAGES / "concept-scales.png", dpi=80)


def _show(axes: Axes, slide: atlas_wsi.Slide) -> None:
    rows, cols = slide.shape
    axes.imshow(slide.thumbnail(900), extent=(0, cols, rows, 0))
    axes.axis("off")


if __name__ == "__main__":
    main()

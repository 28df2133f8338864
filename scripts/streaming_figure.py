"""Draw docs/images/streaming.png: what is read, what stays in memory, what a window attends to.

    python scripts/streaming_figure.py docs/images/streaming.png

The windows, macro-tiles and coarse windows are those that `predict` plans for the slide.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

import atlas_wsi
from atlas_wsi.inference.predict import plan_slide
from atlas_wsi.slides.synthetic import make_svs
from atlas_wsi.streaming.shard import macro_tiles
from atlas_wsi.streaming.working_image import open_working_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, RED, GRAY = "#3c5488", "#dc0000", "#5f6a72"
COARSE = ("#007a5a", "#b35900", "#5b2fb0")


def box(ax: Axes, row: float, col: float, rows: float, cols: float, **style: object) -> None:
    """Draw a rectangle given by its first row and column."""
    ax.add_patch(Rectangle((col, row), cols, rows, **{"fill": False, **style}))


def main(out: Path) -> None:
    """Draw the figure."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.svs"
        make_svs(path, shape=(9000, 13000), mpp=1.0, tissue=0.4, seed=5)
        model = atlas_wsi.load_model("atlas_test")
        with atlas_wsi.open_slide(path) as slide:
            image = open_working_image(slide, mpp=1.0)
            layout = plan_slide(model, image, atlas_wsi.tissue_mask(slide))
            tiles = macro_tiles(model, layout, image.shape, 8)
            thumbnail = np.asarray(slide.thumbnail(900))
    rows, cols = image.shape
    fine = layout.scales[0]
    chosen = int(np.argmin(np.abs(fine.where[:, 1:] * 256 - (rows * 0.45, cols * 0.5)).sum(axis=1)))
    tile = next(tile for tile in tiles if chosen in tile.windows)
    fig, axes = plt.subplots(1, 3, figsize=(13.2, 3.9), layout="constrained")
    for ax in axes:
        ax.imshow(thumbnail, extent=(0, cols, rows, 0), alpha=0.9)
        ax.set(xlim=(0, cols), ylim=(rows, 0), xticks=[], yticks=[])

    axes[0].set_title("pass 0: every window is read once", fontsize=10)
    for other in tiles:
        want = other.want
        box(axes[0], want.row, want.col, want.rows, want.cols, ec=BLUE, lw=1)
    read = tile.read
    box(axes[0], read.row, read.col, read.rows, read.cols, ec=RED, lw=1.6)
    axes[0].set_xlabel("macro-tiles of windows with tissue; red: one with its halo", fontsize=9)

    axes[1].set_title("pass b: one batch of windows at a time", fontsize=10)
    for _, i, j in fine.where:
        box(axes[1], i * 256, j * 256, 256, 256, ec=GRAY, lw=0.4)
    _, i, j = fine.where[chosen]
    box(axes[1], i * 256, j * 256, 256, 256, fc=RED, ec=RED, alpha=0.8, fill=True)
    axes[1].set_xlabel("windows of 16 x 16 tokens; red: one of them", fontsize=9)

    axes[2].set_title("in memory: what that window also sees", fontsize=10)
    for s, (above, parent) in enumerate(zip(layout.scales[1:], fine.parents, strict=True), 1):
        token = 16 * layout.ratio**s
        _, up, left = above.where[int(parent[chosen])]
        side = above.side * token
        top, start = int(up) * side, int(left) * side
        color = COARSE[s - 1]
        height, width = min(side, rows - top), min(side, cols - start)
        box(axes[2], top, start, height, width, ec=color, lw=2.5)
        axes[2].text(start + 150, top + 600 * s - 80, f"scale {s}", color=color, fontsize=10)
        for k in range(1, above.side):
            axes[2].plot([start, start + width], [top + k * token] * 2, color=color, lw=0.2)
            axes[2].plot([start + k * token] * 2, [top, top + height], color=color, lw=0.2)
    box(axes[2], i * 256, j * 256, 256, 256, fc=RED, ec=RED, fill=True)
    axes[2].set_xlabel("one window of every coarser scale: its own, in full", fontsize=9)
    for ax in axes:
        ax.set(xlim=(0, cols), ylim=(rows, 0))
    fig.savefig(out, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Draw docs/images/mosaics.png: maps of mosaics of held-out tiles, without and with context.

    python scripts/mosaic_picture.py OUT/lung EUROSAT_FOLDER

OUT/lung is made by make_training_tiles.py. The mosaics are those of the cards; the one drawn has the
median accuracy among those with three or more classes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

import atlas_wsi
from atlas_wsi.training.data.tile_folder import read_tiles
from atlas_wsi.training.evaluation import unseen_part
from atlas_wsi.training.segmentation import MosaicMaps, read_mosaics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from atlas_wsi.models.card import ModelCard

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "mosaics.png"
HEADS = ("picture", "truth", "window by window", "with context: atlas-wsi")


def main() -> None:
    """Draw one row per model."""
    figure = Figure(figsize=(12, 7.4), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.06, w_pad=0.08)
    rows = figure.subfigures(2, 1)
    for row, name, folder in zip(
        list(rows), ("lung-he", "landcover-rgb"), sys.argv[1:], strict=True
    ):
        model = atlas_wsi.load_model(name)
        tiles = read_tiles(Path(folder), zoom=float(model.card.training.get("zoom", 1)))
        maps = [
            one
            for one in read_mosaics(model, unseen_part(model, tiles))
            if len(np.unique(one.truth[one.counts])) >= 3
        ]
        right = [right_share(one, one.whole) for one in maps]
        median = maps[int(np.argsort(right)[len(right) // 2])]
        order = [model.card.class_names.index(one) for one in tiles.classes]
        assert order == list(range(len(order)))
        draw(row.subplots(1, 4), median, model.card, with_heads=name == "lung-he")
        named = np.stack([median.truth, median.apart, median.whole])
        shown = np.unique(named[:, median.counts])
        handles = [
            Patch(color=model.card.classes[k].color, label=model.card.class_names[k]) for k in shown
        ]
        row.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.savefig(PICTURE, dpi=90, pil_kwargs={"optimize": True})


def right_share(one: MosaicMaps, found: np.ndarray) -> float:
    """Return the accuracy over the cells with a class, 0 to 1."""
    return float((found == one.truth)[one.counts].mean())


def draw(axes: list[Axes], one: MosaicMaps, card: ModelCard, *, with_heads: bool) -> None:
    """Draw the mosaic, its classes, and the predicted classes without and with context."""
    colors = np.array([to_rgb(each.color) for each in card.classes])
    axes[0].imshow(one.image)
    for ax, found in zip(axes[1:], (one.truth, one.apart, one.whole), strict=True):
        picture = np.where(one.counts[..., None], colors[found], 1.0)
        ax.imshow(picture, interpolation="nearest")
    says = ("", "", *(f"{right_share(one, found):.0%} right" for found in (one.apart, one.whole)))
    for ax, head, said in zip(axes, HEADS, says, strict=True):
        ax.set_title(head if with_heads else "", fontsize=11)
        ax.set_xlabel(said, fontsize=10)
        ax.set(xticks=[], yticks=[])
    axes[0].set_ylabel(f"{card.name}, {card.mpp:g} um/px" if card.domain == "slide" else card.name)


if __name__ == "__main__":
    main()

"""How well a model draws borders: mosaics of held-out tiles, whose layout is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from atlas_wsi.training.mosaics import CELL_PX, make_mosaic

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from atlas_wsi.models.model import Model
    from atlas_wsi.progress import Progress
    from atlas_wsi.training.tiles import TileSet

_MIN_LABELED = 0.5
_MIN_TISSUE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MosaicMaps:
    """A mosaic, its classes, and what a model says of it; cells `(rows, cols)`."""

    image: NDArray[np.uint8]
    """`(64 rows, 64 cols, 3)`."""
    truth: NDArray[np.int64]
    """Class with the largest share of each cell."""
    counts: NDArray[np.bool_]
    """Whether half of the cell is of a class."""
    whole: NDArray[np.int64]
    """Class that the model says of the cell, with context."""
    apart: NDArray[np.int64]
    """The same, every window as its own image."""


def evaluate_mosaics(
    model: Model,
    tiles: TileSet,
    *,
    n: int = 16,
    side_px: int = 1024,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Measure the cells of mosaics of unchanged tiles, with context and window by window.

    A cell counts if half of it is labeled; its class is the one with the largest share. Windows
    of glass are left out, as in `predict`.
    """
    n_classes = len(tiles.classes)
    whole = np.zeros((n_classes, n_classes), dtype=np.int64)
    apart = np.zeros_like(whole)
    for done, one in enumerate(
        read_mosaics(model, tiles, n=n, side_px=side_px, seed=seed), start=1
    ):
        np.add.at(whole, (one.truth[one.counts], one.whole[one.counts]), 1)
        np.add.at(apart, (one.truth[one.counts], one.apart[one.counts]), 1)
        if progress is not None:
            progress("evaluate mosaics", done, n)
    return {
        "mosaic_cell_accuracy": float(np.diag(whole).sum() / whole.sum()),
        "mosaic_dice": _dice(whole),
        "mosaic_dice_without_context": _dice(apart),
    }


def read_mosaics(
    model: Model, tiles: TileSet, *, n: int = 16, side_px: int = 1024, seed: int = 0
) -> Iterator[MosaicMaps]:
    """Make mosaics of unchanged tiles, and read each whole and window by window."""
    rng = np.random.default_rng(seed)
    window = model.config.window_px
    for _ in range(n):
        mosaic = make_mosaic(
            tiles, (side_px, side_px), rng, stain=model.card.domain == "slide", vary=False
        )
        labeled = mosaic.shares.sum(axis=0)
        active = functional.avg_pool2d(torch.from_numpy(labeled)[None], window // CELL_PX)
        yield MosaicMaps(
            image=mosaic.image,
            truth=mosaic.shares.argmax(axis=0),
            counts=labeled > _MIN_LABELED,
            whole=_classes(model, mosaic.image[None], active > _MIN_TISSUE)[0],
            apart=_window_by_window(model, mosaic.image),
        )


def _classes(
    model: Model, images: NDArray[np.uint8], active: torch.Tensor | None = None
) -> NDArray[np.int64]:
    with torch.inference_mode():
        found = model(model.normalize(torch.from_numpy(images)), active)
        return found.cells.argmax(dim=1).numpy()


def _window_by_window(model: Model, image: NDArray[np.uint8]) -> NDArray[np.int64]:
    window = model.config.window_px
    n, cells = image.shape[0] // window, window // CELL_PX
    windows = image.reshape(n, window, n, window, 3).swapaxes(1, 2).reshape(-1, window, window, 3)
    found = _classes(model, np.ascontiguousarray(windows))
    return found.reshape(n, n, cells, cells).swapaxes(1, 2).reshape(n * cells, n * cells)


def _dice(counts: NDArray[np.int64]) -> float:
    """Mean over the classes that occur."""
    size = counts.sum(axis=0) + counts.sum(axis=1)
    return float((2 * np.diag(counts) / np.maximum(size, 1))[counts.sum(axis=1) > 0].mean())

"""Tiles side by side in random order: what a model makes of a tile amid others that are unlike it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from atlas_wsi.training.metrics import confusion, summarize

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from atlas_wsi.models.model import Model
    from atlas_wsi.training.data.labeled import LabeledTiles

_SIDE_PX = 1024


def sheets(
    images: NDArray[np.uint8], *, token_px: int, seed: int = 0
) -> Iterator[tuple[NDArray[np.uint8], list[tuple[int, slice, slice]]]]:
    """Lay all tiles out in pictures; with each, its tiles and the rows and columns of their tokens."""
    rng = np.random.default_rng(seed)
    rows, cols = images.shape[1:3]
    few = max(2, math.isqrt(len(images) - 1) + 1)
    down, across = (min(few, max(2, round(_SIDE_PX / n))) for n in (rows, cols))
    order = rng.permutation(len(images))
    for first in range(0, len(order), down * across):
        own = order[first : first + down * across]
        rest = rng.integers(len(images), size=down * across - len(own))
        picture = images[np.concatenate([own, rest])].reshape(down, across, rows, cols, 3)
        yield (
            picture.swapaxes(1, 2).reshape(down * rows, across * cols, 3),
            [
                (int(tile), *_tokens(divmod(at, across), (rows, cols), token_px))
                for at, tile in enumerate(own)
            ],
        )


def _tokens(place: tuple[int, int], shape: tuple[int, int], token_px: int) -> tuple[slice, slice]:
    rows, cols = (
        slice(-(-i * n // token_px), (i + 1) * n // token_px)
        for i, n in zip(place, shape, strict=True)
    )
    return rows, cols


@torch.inference_mode()
def measure_amid(model: Model, tiles: LabeledTiles) -> dict[str, float]:
    """Return accuracy and balanced accuracy of tiles amid others, of their tokens' mean probability."""
    index = [model.card.class_names.index(name) for name in tiles.classes]
    predicted = np.zeros(len(tiles), np.int64)
    device = model.encoder.fc.weight.device
    for picture, places in sheets(tiles.images, token_px=model.config.token_px):
        x_BCYX = model.normalize(torch.from_numpy(picture[None]).to(device))
        logits = model(x_BCYX, cell_tokens=1).cells[0].float() / model.card.temperature
        p = logits.softmax(dim=0)
        for tile, rows, cols in places:
            predicted[tile] = int(p[:, rows, cols].mean(dim=(1, 2)).argmax())
    counts = confusion(np.array(index)[tiles.labels], predicted, len(model.card.class_names))
    return {f"amid_{name}": value for name, value in summarize(counts).items()}

"""What a model remembers of the images that it was trained on, to tell others from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from atlas_wsi.grid import Box
from atlas_wsi.models.familiarity import Familiarity, mean_tokens

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from atlas_wsi.models.card import MeasuredOn
    from atlas_wsi.models.model import Model
    from atlas_wsi.training.data.labeled import Labeled
    from atlas_wsi.training.split import Split

_MIN_IMAGES, _MAX_KNOWN, _MAX_OTHERS = 20, 160, 80


def learn_familiarity(model: Model, data: Labeled, parts: Split) -> None:
    """Describe the images of the training in a model; held-out ones set what is familiar.

    Nothing is described where there are less than 20 images of either kind.
    """
    sets: dict[MeasuredOn, NDArray[np.int64]] = {
        "validation": parts.validation,
        "test": parts.test,
        "training": parts.train,
    }
    measured_on, others = next((name, which) for name, which in sets.items() if len(which))
    known, unseen = data.subset(parts.train).images, data.subset(others).images
    if min(len(known), len(unseen)) < _MIN_IMAGES:
        return
    cells = cells_of(model, known, _MAX_KNOWN), cells_of(model, unseen, _MAX_OTHERS)
    model.familiarity = Familiarity.fit(*cells, measured_on)
    model.card = model.card.model_copy(update={"familiar": model.familiarity.facts})


@torch.inference_mode()
def cells_of(model: Model, images: NDArray[np.uint8], most: int) -> torch.Tensor:
    """Return the mean tokens of windows amid a slide, half of one image and half of many."""
    stem, side = model.encoder.stem.eval(), model.config.window_px
    window, shape = Box(row=side, col=side, rows=side, cols=side), (3 * side, 3 * side)
    have = stem.reach(window, shape)
    rows, which_row = _mirrored(have.row, have.row_end, images.shape[1])
    cols, which_col = _mirrored(have.col, have.col_end, images.shape[2])
    rng = np.random.default_rng(0)
    cells: list[torch.Tensor] = []
    for first in rng.permutation(len(images))[:most].tolist():
        of = rng.integers(len(images), size=(which_row[-1] + 1, which_col[-1] + 1))
        if len(cells) % 2:
            of[:] = first
        picture = images[of[which_row][:, which_col], rows[:, None], cols]
        x_BCYX = model.normalize(torch.from_numpy(picture[None]))
        cells.append(mean_tokens(stem.part(x_BCYX, window, shape)))
    return torch.cat(cells)


def _mirrored(start: int, stop: int, n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Repeat `n` pixels, every other copy turned: the index of each, and the number of its copy."""
    copy, at = np.divmod(np.arange(start, stop), n)
    return np.where(copy % 2, n - 1 - at, at), copy - copy[0]

"""A heatmap while it is being predicted."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from atlas_wsi.grid import Box
from atlas_wsi.heatmap.heatmap import Heatmap

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from atlas_wsi.models.layout import Layout

Preview = Callable[[Heatmap, Box], None]
"""Called with the heatmap so far, and its new cells."""


def into_heatmap(
    heatmap: Heatmap,
    preview: Preview,
    layout: Layout,
    wanted: NDArray[np.bool_],
    temperature: float,
) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """Make a function that writes logits of windows into a heatmap and calls `preview`.

    `wanted`: bool `(rows, cols)`: cells that are shown. Returns: Takes the indices of windows in the
    layout, and float32 `(n, class, rows, cols)`.
    """
    where = layout.scales[0].where

    def show(windows: torch.Tensor, logits: torch.Tensor) -> None:
        blocks = torch.softmax(logits / temperature, dim=1).numpy()
        for (_, i, j), block in zip(where[windows.numpy()], blocks, strict=True):
            row, col = int(i) * block.shape[1], int(j) * block.shape[2]
            here = wanted[row : row + block.shape[1], col : col + block.shape[2]]
            box = Box(row=row, col=col, rows=here.shape[0], cols=here.shape[1])
            new = np.where(here, block[:, : box.rows, : box.cols], np.nan)
            heatmap.probabilities[:, row : box.row_end, col : box.col_end] = new
            preview(heatmap, box)

    return show

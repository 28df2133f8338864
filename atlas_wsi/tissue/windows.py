"""Which windows of a slide are computed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from atlas_wsi.grid import Grid

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from atlas_wsi.tissue.mask import TissueMask

_MIN_TISSUE, _MAX_LOST = 0.05, 0.01


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WindowGrid:
    """The windows of a slide at a working resolution, and which of them hold tissue."""

    grid: Grid
    """One cell a window, anchored at the slide's origin; the last ones may reach over the slide."""
    active: NDArray[np.bool_]
    """bool `(rows, cols)`: windows to compute."""
    window_px: int
    """Working pixels along a window's side."""
    image_shape: tuple[int, int]
    """Rows and columns of the whole slide in working pixels."""
    mpp: tuple[float, float]
    """Micrometers per working pixel `(y, x)`."""

    @property
    def n_active(self) -> int:
        """Number of windows to compute."""
        return int(np.count_nonzero(self.active))


def plan_windows(
    slide_shape: tuple[int, int],
    slide_mpp: tuple[float, float],
    mask: TissueMask | None,
    *,
    mpp: float | tuple[float, float],
    window_px: int = 256,
    min_tissue: float | None = None,
) -> WindowGrid:
    """Lay windows over a slide and pick those with enough tissue; resolutions are `(y, x)`.

    `min_tissue`: least part of a window, 0 to 1. By default 5%, but windows with less are left out
    only as long as 1% of the tissue is lost with them: thin pieces lie in many.
    """
    mpp_yx = (mpp, mpp) if isinstance(mpp, int | float) else mpp
    if min(*slide_shape, *slide_mpp, *mpp_yx, window_px) <= 0:
        raise ValueError(
            "Sizes and resolutions must be positive: "
            f"slide_shape={slide_shape}, slide_mpp={slide_mpp}, mpp={mpp}, window_px={window_px}."
        )
    if min_tissue is not None and not 0 <= min_tissue <= 1:
        raise ValueError(f"min_tissue={min_tissue} is not between 0 and 1.")
    zoom = (slide_mpp[0] / mpp_yx[0], slide_mpp[1] / mpp_yx[1])
    rows, cols = (max(1, math.ceil(n * z - 1e-6)) for n, z in zip(slide_shape, zoom, strict=True))
    grid = Grid(
        shape=(-(-rows // window_px), -(-cols // window_px)),
        step_px=(window_px / zoom[0], window_px / zoom[1]),
    )
    if mask is None:
        active = np.ones(grid.shape, bool)
    else:
        on_slide = (
            np.clip(size / step - np.arange(n), 1e-9, 1)
            for size, step, n in zip(slide_shape, grid.step_px, grid.shape, strict=True)
        )
        covered = mask.coverage(grid)
        share = covered / np.outer(*on_slide)
        active = share > 0
        if not mask.is_drawn:
            enough = share >= (_MIN_TISSUE if min_tissue is None else min_tissue) - 1e-6
            if min_tissue is None:
                little = np.where(enough, 0, covered)
                order = np.argsort(little, axis=None)
                lost = np.cumsum(little.flat[order])
                enough.flat[order[lost > _MAX_LOST * covered.sum()]] = True
            active &= enough
    return WindowGrid(
        grid=grid, active=active, window_px=window_px, image_shape=(rows, cols), mpp=mpp_yx
    )

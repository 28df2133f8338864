"""Levels: which stored one serves a resolution, and coarse ones that a file lacks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from atlas_wsi.slides.backend import Level

if TYPE_CHECKING:
    from collections.abc import Sequence

OVERVIEW_PX = 1024
_MADE_TILE_PX = 512
_FINER_SLACK = 1.01


def true_downsample(full_px: int, level_px: int) -> float:
    """Return the level-0 pixels per pixel of a stored level."""
    quotient = full_px / level_px
    for whole in (2 ** round(math.log2(quotient)), round(quotient)):
        if math.floor(full_px / whole) <= level_px <= math.ceil(full_px / whole):
            return float(whole)
    return quotient


def with_overviews(stored: Sequence[Level]) -> tuple[Level, ...]:
    """Return the stored levels followed by the coarser ones to be made."""
    levels = list(stored)
    while max(levels[-1].shape) > OVERVIEW_PX:
        finer = levels[-1]
        rows, cols = (-(-n // 2) for n in finer.shape)
        levels.append(
            Level(
                shape=(rows, cols),
                downsample=(finer.downsample[0] * 2, finer.downsample[1] * 2),
                tile=(_MADE_TILE_PX, _MADE_TILE_PX),
            )
        )
    return tuple(levels)


def level_for(levels: Sequence[Level], ratio: tuple[float, float]) -> int:
    """Return the coarsest level that is fine enough for `ratio`, level-0 pixels per pixel `(y, x)`."""
    y, x = ratio[0] * _FINER_SLACK, ratio[1] * _FINER_SLACK
    best = 0
    for index, level in enumerate(levels):
        if level.downsample[0] <= y and level.downsample[1] <= x:
            best = index
    return best

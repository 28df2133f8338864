"""A region at a resolution, translated into the level that serves it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atlas_wsi.grid import Box
from atlas_wsi.slides.pyramid import level_for
from atlas_wsi.slides.resample import resample, support_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from atlas_wsi.slides.backend import Level

_BLOCK_PX = 1024
_ALIGNED_PX = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A region at a resolution, in terms of the level that serves it."""

    level: int
    """Level to read from."""
    start: tuple[float, float]
    """Top-left corner in the level's pixels `(y, x)`."""
    scale: tuple[float, float]
    """Level pixels an output pixel `(y, x)`."""
    shape: tuple[int, int]
    """Output rows and columns."""

    @classmethod
    def over(
        cls,
        levels: Sequence[Level],
        y: float,
        x: float,
        shape: tuple[int, int],
        ratio: tuple[float, float],
    ) -> View:
        """Choose the level for a region of `ratio` level-0 pixels an output pixel `(y, x)`."""
        if min(shape) < 0 or not (math.isfinite(y) and math.isfinite(x)):
            raise ValueError(f"No region has its corner at {y, x} and {shape} rows and columns.")
        level = level_for(levels, ratio)
        downsample = levels[level].downsample
        start = y / downsample[0], x / downsample[1]
        scale = ratio[0] / downsample[0], ratio[1] / downsample[1]
        return cls(level=level, start=start, scale=scale, shape=shape)

    @property
    def aligned_box(self) -> Box | None:
        """The level's pixels that are the output's, or None if resampling is needed."""
        row, col = round(self.start[0]), round(self.start[1])
        rows, cols = self.shape
        off = max(abs(self.start[0] - row), abs(self.start[1] - col))
        drift = max(abs(self.scale[0] - 1.0) * rows, abs(self.scale[1] - 1.0) * cols)
        if rows and cols and (off > _ALIGNED_PX or drift > _ALIGNED_PX):
            return None
        return Box(row=row, col=col, rows=rows, cols=cols)

    def blocks(self) -> Iterator[Box]:
        """Cut the output so that the pixels read for a block stay few."""
        rows, cols = (max(32, int(_BLOCK_PX / max(s, 1.0))) for s in self.scale)
        for row in range(0, self.shape[0], rows):
            for col in range(0, self.shape[1], cols):
                block = Box(row=row, col=col, rows=rows, cols=cols)
                yield block.clip(self.shape)

    def source_of(self, out: Box) -> Box:
        """Return the level's pixels that a block of the output needs."""
        row, row_end = support_of(self._corner(out)[0], self.scale[0], out.rows)
        col, col_end = support_of(self._corner(out)[1], self.scale[1], out.cols)
        return Box(row=row, col=col, rows=row_end - row, cols=col_end - col)

    def reduce(self, pixels: NDArray[Any], source: Box, out: Box) -> NDArray[np.float32]:
        """Resample `(rows, cols, channels)` read for a block to float32, not rounded."""
        return resample(
            pixels,
            (source.row, source.col),
            start=self._corner(out),
            scale=self.scale,
            shape=(out.rows, out.cols),
        )

    def _corner(self, out: Box) -> tuple[float, float]:
        return self.start[0] + out.row * self.scale[0], self.start[1] + out.col * self.scale[1]

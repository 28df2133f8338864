"""Where an array lies on a slide: boxes of pixels and grids of cells."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A half-open rectangle of pixels or cells."""

    row: int
    """First row."""
    col: int
    """First column."""
    rows: int
    """Number of rows."""
    cols: int
    """Number of columns."""

    @property
    def row_end(self) -> int:
        """The row after the last one."""
        return self.row + self.rows

    @property
    def col_end(self) -> int:
        """The column after the last one."""
        return self.col + self.cols

    @property
    def is_empty(self) -> bool:
        """Whether the box has no pixel."""
        return self.rows <= 0 or self.cols <= 0

    @property
    def slices(self) -> tuple[slice, slice]:
        """The box as an index of an array ``(row, col, ...)``."""
        return slice(self.row, self.row_end), slice(self.col, self.col_end)

    def clip(self, shape: tuple[int, int]) -> Box:
        """Return the part inside an array of the shape ``(rows, cols)``.

        Parameters
        ----------
        shape
            Rows and columns of the array.

        Returns
        -------
        Box
            The common part; empty (zero rows or columns) if there is none.
        """
        row, col = min(max(self.row, 0), shape[0]), min(max(self.col, 0), shape[1])
        rows = max(0, min(self.row_end, shape[0]) - row)
        cols = max(0, min(self.col_end, shape[1]) - col)
        return Box(row=row, col=col, rows=rows, cols=cols)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Cells laid over the level-0 pixels of a slide.

    Cell ``(i, j)`` covers the level-0 pixels from ``origin + (i, j) * step`` up to
    ``origin + (i + 1, j + 1) * step``. Its center is half a step from its corner.
    """

    shape: tuple[int, int]
    """Rows and columns of cells."""
    step_px: tuple[float, float]
    """Level-0 pixels per cell `(y, x)`."""
    origin_px: tuple[float, float] = (0.0, 0.0)
    """Level-0 position `(y, x)` of the corner of cell (0, 0)."""

    @classmethod
    def over(cls, extent_px: tuple[int, int], step_px: tuple[float, float]) -> Grid:
        """Return the smallest grid from the origin that covers an extent.

        Parameters
        ----------
        extent_px
            Level-0 rows and columns to cover.
        step_px
            Level-0 pixels per cell `(y, x)`.

        Returns
        -------
        Grid
            A grid whose last row and column may reach over the extent.
        """
        rows, cols = (
            max(1, math.ceil(n / s - 1e-6)) for n, s in zip(extent_px, step_px, strict=True)
        )
        return cls(shape=(rows, cols), step_px=step_px)

    def coarsen(self, factor: int) -> Grid:
        """Return the grid whose cells are `factor` x `factor` cells of this one.

        Parameters
        ----------
        factor
            Cells of this grid along one side of the new cell, at least 1.

        Returns
        -------
        Grid
            Same origin, shape rounded up.
        """
        rows, cols = (-(-n // factor) for n in self.shape)
        step = (self.step_px[0] * factor, self.step_px[1] * factor)
        return Grid(shape=(rows, cols), step_px=step, origin_px=self.origin_px)

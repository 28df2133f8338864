"""Parts of boxes, and copying the common part of two."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from atlas_wsi.grid import Box

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


def paste(source: NDArray[Any], source_box: Box, target: NDArray[Any], target_box: Box) -> None:
    """Copy the pixels that two arrays `(rows, cols, ...)` have in common."""
    row, col = max(source_box.row, target_box.row), max(source_box.col, target_box.col)
    rows = min(source_box.row_end, target_box.row_end) - row
    cols = min(source_box.col_end, target_box.col_end) - col
    if rows > 0 and cols > 0:
        common = Box(row=row, col=col, rows=rows, cols=cols)
        target[relative(common, target_box).slices] = source[relative(common, source_box).slices]


def relative(box: Box, origin: Box) -> Box:
    """Return a box in the pixels of another one."""
    return Box(row=box.row - origin.row, col=box.col - origin.col, rows=box.rows, cols=box.cols)


def split(box: Box, rows: int, cols: int) -> Iterator[Box]:
    """Yield the parts of a box, at most so many rows and columns each."""
    for row in range(box.row, box.row_end, rows):
        for col in range(box.col, box.col_end, cols):
            height, width = min(rows, box.row_end - row), min(cols, box.col_end - col)
            yield Box(row=row, col=col, rows=height, cols=width)

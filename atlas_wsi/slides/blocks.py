"""How large a piece of a level is worth reading at once."""

from __future__ import annotations

_SMALLEST_PX = 256
_LARGEST_PX = 4096
_CUT_PX = 1024


def whole_blocks(block: tuple[int, int], shape: tuple[int, int]) -> tuple[int, int]:
    """Return a good size of a tile, given the blocks that a file stores."""
    rows, cols = (
        min(full, _good_side(max(1, side))) for side, full in zip(block, shape, strict=True)
    )
    return rows, cols


def _good_side(side: int) -> int:
    if side > _LARGEST_PX:
        return _CUT_PX
    return side * -(-_SMALLEST_PX // side)

"""Which pixels are read together: macro-tiles, halos, memory. Pure arithmetic."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import psutil

from atlas_wsi.errors import MemoryBudgetError
from atlas_wsi.grid import Box
from atlas_wsi.models.stems.base import times

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_SETUP_PX = 20_000
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True, slots=True, kw_only=True)
class MacroTile:
    """A block of neighboring windows that is decoded and encoded at once."""

    windows: NDArray[np.int64]
    """Places of its active windows in the layout's list."""
    area: Box
    """Windows it spans: rows and columns of the grid of windows."""
    want: Box
    """Working pixels of the area, inside the image."""
    read: Box
    """Working pixels to read: the area and what its tokens depend on, inside the image."""


def plan_macro_tiles(
    where: NDArray[np.int64],
    *,
    image_shape: tuple[int, int],
    window_px: int,
    reach: Callable[[Box, tuple[int, int]], Box],
    side: int,
) -> list[MacroTile]:
    """Group the active windows into macro-tiles.

    `where`: `(N, 2)`: row and column of every active window.
    """

    def tile_of(members: NDArray[np.int64]) -> MacroTile:
        (row, col), (last_row, last_col) = where[members].min(axis=0), where[members].max(axis=0)
        area = Box(
            row=int(row), col=int(col), rows=int(last_row - row) + 1, cols=int(last_col - col) + 1
        )
        want = times(area, window_px).clip(image_shape)
        return MacroTile(windows=members, area=area, want=want, read=reach(want, image_shape))

    def cut(tile: MacroTile) -> list[MacroTile]:
        places = where[tile.windows]
        best: list[MacroTile] = []
        least = _cost(tile)
        for axis in (0, 1):
            for at in np.unique(places[:, axis])[1:]:
                before = places[:, axis] < at
                parts = [tile_of(tile.windows[before]), tile_of(tile.windows[~before])]
                cost = sum(_cost(part) for part in parts)
                if cost < least:
                    best, least = parts, cost
        return [piece for part in best for piece in cut(part)] if best else [tile]

    block = where // side
    order = np.lexsort((block[:, 1], block[:, 0]))
    starts = np.flatnonzero(np.any(np.diff(block[order], axis=0, prepend=-1) != 0, axis=1))
    tiles = []
    for members in np.split(order, starts[1:]):
        tiles += cut(tile_of(members))
    return tiles


def _cost(tile: MacroTile) -> int:
    """Return the pixels of a tile, and those that could be encoded while it is set up."""
    return tile.read.rows * tile.read.cols + _SETUP_PX


def parse_bytes(text: str | int) -> int:
    """Read an amount of memory.

    Parameters
    ----------
    text
        Such as ``"4GB"``, or bytes.

    Returns
    -------
    int
        Bytes.

    Raises
    ------
    ValueError
        If it is not an amount of memory.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([KMGT]?)(?:i?B)?\s*", str(text).upper())
    if not match:
        raise ValueError(f"'{text}' is not an amount of memory; expected such as 4GB or 800MB")
    return int(float(match[1]) * _UNITS[match[2]])


def memory_budget(memory: str | int | None) -> int:
    """Return the bytes that may be taken; by default half of the free memory."""
    return psutil.virtual_memory().available // 2 if memory is None else parse_bytes(memory)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """How a memory budget is spent."""

    tokens_in_ram: bool
    """Whether the fine tokens stay in memory; else they lie in a temporary file."""
    macro_side: int
    """Windows along a macro-tile's side."""
    batch: int
    """Windows that attend at once."""


def plan_memory(
    budget_bytes: int,
    *,
    n_windows: int,
    tokens: int,
    dim: int,
    n_scales: int,
    window_px: int,
    pixel_floats: float,
    itemsize: int,
    batch: int | None = None,
) -> MemoryPlan:
    """Divide a memory budget among tokens, macro-tiles and batches."""
    window_bytes = tokens * dim * itemsize
    # tokens, keys and values, and parts of every scale but the finest; each is 1/16 of the last
    coarse_bytes = n_windows * window_bytes // 16 * 8
    left = budget_bytes - coarse_bytes
    need = 48 * window_bytes
    if left < need:
        raise MemoryBudgetError(
            f"{budget_bytes / 2**20:.0f} MiB are not enough for {n_windows} windows: the coarse "
            f"scales take {coarse_bytes / 2**20:.0f} MiB and a batch {need / 2**20:.0f} MiB.",
            hint="Raise --memory, or predict a smaller area.",
        )
    in_ram = n_windows * window_bytes <= left // 2
    free = left - n_windows * window_bytes if in_ram else left
    pixel_bytes = itemsize * pixel_floats + 24
    side = int(np.sqrt(free / 3 / pixel_bytes) / window_px)
    # activations of a window: the residual stream, queries, an MLP four times as wide, and the
    # keys and values of every scale
    fits = int(free / 3 / (window_bytes * (14 + 4 * n_scales)))
    return MemoryPlan(
        tokens_in_ram=in_ram,
        macro_side=max(1, min(8, side)),
        batch=batch or max(1, min(64, fits)),
    )

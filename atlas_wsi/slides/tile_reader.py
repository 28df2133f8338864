"""Pixels of one level, tile by tile: cached, and with holes where the file is damaged."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas_wsi.errors import UnreadableSlideError
from atlas_wsi.grid import Box
from atlas_wsi.slides.cache import TileCache
from atlas_wsi.slides.paste import paste, relative
from atlas_wsi.slides.pyramid import with_overviews
from atlas_wsi.slides.resample import as_dtype, halve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from atlas_wsi.slides.backend import Backend


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadableTile:
    """A stored block that could not be decoded; the background color stands in for it."""

    level: int
    """Level of the file."""
    box: Box
    """Where, in that level's pixels."""
    reason: str
    """What the decoder said."""


class TileReader:
    """Reads boxes of any level of a back end, also of coarse levels that the file lacks."""

    def __init__(self, backend: Backend, *, strict: bool, cache: TileCache | None = None) -> None:
        meta = backend.meta
        self.levels = with_overviews(meta.levels)
        self.dtype = np.dtype(meta.dtype)
        self.background = np.array(meta.background).astype(self.dtype)
        self.has_mask = meta.has_mask
        self._backend = backend
        self._n_stored = len(meta.levels)
        self._strict = strict
        self._cache = cache or TileCache()
        self._unreadable: dict[tuple[int, int, int], UnreadableTile] = {}
        self._lock = threading.Lock()

    @property
    def unreadable(self) -> list[UnreadableTile]:
        """Blocks that could not be decoded so far."""
        with self._lock:
            return list(self._unreadable.values())

    def read(self, level: int, box: Box) -> NDArray[Any]:
        """Read pixels of a level.

        Returns: `(rows, cols, channels)`, background outside the level.
        """
        inside = box.clip(self.levels[level].shape)
        places = list(self._tiles_in(level, inside))
        # Whole tiles are no neighbor's margin: they go past the cache, which spares copying.
        fetch = self._decode if self._is_whole(level, inside) else self._fetch
        if len(places) == 1 and places[0] == box:
            tile = fetch(level, box)
            return tile if tile.flags.writeable else tile.copy()
        pixels = np.empty((box.rows, box.cols, len(self.background)), self.dtype)
        if inside != box:
            pixels[...] = self.background
        for place in places:
            paste(fetch(level, place), place, pixels, box)
        return pixels

    def read_valid(self, level: int, box: Box) -> NDArray[np.bool_]:
        """Tell which pixels of a level hold an observation.

        Returns: bool `(rows, cols)`, False outside the level and in blocks found unreadable so far.
        """
        valid = np.zeros((box.rows, box.cols), dtype=bool)
        if not self.has_mask:
            inside = box.clip(self.levels[level].shape)
            valid[relative(inside, box).slices] = True
        else:
            for place in self._tiles_in(level, box.clip(self.levels[level].shape)):
                key = "valid", level, place.row, place.col
                tile = self._cache.fetch(key, partial(self._decode_valid, level, place))
                paste(tile, place, valid, box)
        self._punch_unreadable(level, box, valid)
        return valid

    def close(self) -> None:
        """Give the file and the memory back to the system."""
        self._cache.clear()
        self._backend.close()

    def _fetch(self, level: int, place: Box) -> NDArray[Any]:
        key = level, place.row, place.col
        return self._cache.fetch(key, partial(self._decode, level, place))

    def _is_whole(self, level: int, inside: Box) -> bool:
        """Whether a box is made of whole stored tiles."""
        (rows, cols), (row_end, col_end) = self.levels[level].tile, self.levels[level].shape
        return (
            level < self._n_stored
            and inside.row % rows == 0
            and inside.col % cols == 0
            and (inside.row_end % rows == 0 or inside.row_end == row_end)
            and (inside.col_end % cols == 0 or inside.col_end == col_end)
        )

    def _tiles_in(self, level: int, inside: Box) -> Iterator[Box]:
        """Yield where the tiles lie that a box touches."""
        if inside.is_empty:
            return
        (rows, cols), (row_end, col_end) = self.levels[level].tile, self.levels[level].shape
        for row in range(inside.row // rows * rows, inside.row_end, rows):
            for col in range(inside.col // cols * cols, inside.col_end, cols):
                height, width = min(rows, row_end - row), min(cols, col_end - col)
                yield Box(row=row, col=col, rows=height, cols=width)

    def _decode(self, level: int, box: Box) -> NDArray[Any]:
        if level >= self._n_stored:
            return self._make(level, box)
        try:
            return self._backend.read_block(level, box)
        except UnreadableSlideError as error:
            if self._strict:
                raise
            tile = UnreadableTile(level=level, box=box, reason=str(error.__cause__ or error))
            with self._lock:
                self._unreadable[level, box.row, box.col] = tile
        blank = np.empty((box.rows, box.cols, len(self.background)), self.dtype)
        blank[...] = self.background
        return blank

    def _decode_valid(self, level: int, box: Box) -> NDArray[np.bool_]:
        if level >= self._n_stored:
            share = self.read_valid(level - 1, self._finer(level, box))
            return halve(share[..., None].astype(np.float32))[..., 0] >= 0.5
        try:
            return self._backend.read_valid(level, box)
        except UnreadableSlideError:
            if self._strict:
                raise
        return np.zeros((box.rows, box.cols), dtype=bool)

    def _make(self, level: int, box: Box) -> NDArray[Any]:
        finer = self._finer(level, box)
        pixels = self.read(level - 1, finer).astype(np.float32)
        if not self.has_mask:
            return as_dtype(halve(pixels), self.dtype)
        valid = self.read_valid(level - 1, finer)[..., None].astype(np.float32)
        return self.blend(halve(np.where(valid > 0, pixels, np.float32(0))), halve(valid))

    def blend(self, total: NDArray[np.float32], share: NDArray[np.float32]) -> NDArray[Any]:
        """Turn sums over valid pixels into their mean.

        `total`: `(rows, cols, channels)`, means in which invalid pixels count as zero. `share`:
        `(rows, cols, 1)`, weight of the valid pixels, 0 to 1. Returns: `(rows, cols, channels)` in
        the slide's sample type; background where less than half of a pixel is valid.
        """
        mean = total / np.maximum(share, np.float32(0.5))
        return np.asarray(
            np.where(
                share >= 0.5, as_dtype(np.asarray(mean, np.float32), self.dtype), self.background
            )
        )

    def _finer(self, level: int, box: Box) -> Box:
        doubled = Box(row=box.row * 2, col=box.col * 2, rows=box.rows * 2, cols=box.cols * 2)
        return doubled.clip(self.levels[level - 1].shape)

    def _punch_unreadable(self, level: int, box: Box, valid: NDArray[np.bool_]) -> None:
        here = self.levels[level].downsample
        for hole in self.unreadable:
            there = self.levels[hole.level].downsample
            row, row_end = (round(n * there[0] / here[0]) for n in (hole.box.row, hole.box.row_end))
            col, col_end = (round(n * there[1] / here[1]) for n in (hole.box.col, hole.box.col_end))
            scaled = Box(
                row=row - box.row, col=col - box.col, rows=row_end - row, cols=col_end - col
            )
            valid[scaled.clip((box.rows, box.cols)).slices] = False

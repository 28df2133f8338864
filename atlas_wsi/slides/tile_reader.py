"""Pixels of one level, tile by tile: cached, and with holes where the file is damaged."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from atlas_wsi.errors import UnreadableSlideError
from atlas_wsi.grid import Box
from atlas_wsi.slides import radiometry
from atlas_wsi.slides.cache import TileCache
from atlas_wsi.slides.paste import paste, relative, split
from atlas_wsi.slides.pyramid import with_overviews
from atlas_wsi.slides.resample import as_dtype, halve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from atlas_wsi.slides.backend import Backend


Channels: TypeAlias = "tuple[int, ...]"
_PART_PX = 256
OBSERVED, NO_DATA, UNREADABLE = 0, 1, 2
"""What is known of a pixel: it was read; the file marks it as missing; its block is damaged."""


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
        self.channels = radiometry.rgb_channels(meta)[0]
        self._backend = backend
        self._n_stored = len(meta.levels)
        self._strict = strict
        self._cache = cache or TileCache()
        self._unreadable: dict[tuple[int, int, int], list[UnreadableTile]] = {}
        self._lock = threading.Lock()

    @property
    def unreadable(self) -> list[UnreadableTile]:
        """Blocks that could not be decoded so far."""
        with self._lock:
            return [hole for holes in self._unreadable.values() for hole in holes]

    def read(self, level: int, box: Box) -> NDArray[Any]:
        """Read `(rows, cols, channels)`, background outside the level."""
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

    def read_masked(
        self, level: int, box: Box, channels: Channels
    ) -> tuple[NDArray[Any], NDArray[np.uint8] | None]:
        """Read pixels of a level, and what is known of them.

        Returns: `(rows, cols, channels)`, and uint8 `(rows, cols)` of `OBSERVED`, `NO_DATA` and
        `UNREADABLE`, or None if all are observed. `channels`: those that must hold an observation.
        """
        return self.read(level, box), self._state(level, box, channels, was_read=True)

    def read_valid(self, level: int, box: Box, channels: Channels) -> NDArray[np.bool_]:
        """Tell which pixels of a level are observed, as far as is known without reading them.

        Returns: bool `(rows, cols)`, False outside the level and in blocks found unreadable so far.
        """
        state = self._state(level, box, channels, was_read=False)
        valid = np.ones((box.rows, box.cols), dtype=bool) if state is None else state == OBSERVED
        here = self.levels[level].downsample
        for hole in self.unreadable:
            there = self.levels[hole.level].downsample
            row, row_end = (round(n * there[0] / here[0]) for n in (hole.box.row, hole.box.row_end))
            col, col_end = (round(n * there[1] / here[1]) for n in (hole.box.col, hole.box.col_end))
            scaled = Box(row=row, col=col, rows=row_end - row, cols=col_end - col)
            valid[relative(scaled, box).clip(valid.shape).slices] = False
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

    def _is_absent(self, level: int, box: Box) -> bool:
        last = self._n_stored - 1
        if level > last:
            factor = 2 ** (level - last)
            rows, cols = box.rows * factor, box.cols * factor
            box = Box(row=box.row * factor, col=box.col * factor, rows=rows, cols=cols)
            level, box = last, box.clip(self.levels[last].shape)
        return self._backend.is_absent(level, box)

    def _blank(self, box: Box) -> NDArray[Any]:
        blank = np.empty((box.rows, box.cols, len(self.background)), self.dtype)
        blank[...] = self.background
        return blank

    def _decode(self, level: int, box: Box) -> NDArray[Any]:
        if self._is_absent(level, box):
            return self._blank(box)
        if level >= self._n_stored:
            return self._make(level, box)
        pixels, holes = self._read_stored(level, box, self._backend.read_block, self._blank)
        if holes:
            with self._lock:
                self._unreadable[level, box.row, box.col] = holes
        return pixels

    def _read_stored(
        self,
        level: int,
        tile: Box,
        read: Callable[[int, Box], NDArray[Any]],
        empty: Callable[[Box], NDArray[Any]],
    ) -> tuple[NDArray[Any], list[UnreadableTile]]:
        """Read a tile, or those of its stored blocks that can be decoded; also return the others."""
        try:
            return read(level, tile), []
        except UnreadableSlideError as error:
            if self._strict:
                raise
            whole = UnreadableTile(level=level, box=tile, reason=str(error.__cause__ or error))
        found, holes = empty(tile), []
        blocks = list(split(tile, *(self.levels[level].stored or (tile.rows, tile.cols))))
        if len(blocks) == 1:
            return found, [whole]
        for block in blocks:
            try:
                paste(read(level, block), block, found, tile)
            except UnreadableSlideError as error:
                reason = str(error.__cause__ or error)
                holes.append(UnreadableTile(level=level, box=block, reason=reason))
        return found, [whole] if len(holes) == len(blocks) else holes

    def _make(self, level: int, box: Box) -> NDArray[Any]:
        made = self._blank(box)
        for part, finer in self._parts(level, box):
            pixels, state = self.read_masked(level - 1, finer, self.channels)
            if state is None:
                half = as_dtype(halve(pixels.astype(np.float32)), self.dtype)
            else:
                valid = (state == OBSERVED)[..., None].astype(np.float32)
                observed = np.where(valid > 0, pixels, 0).astype(np.float32)
                half = self.blend(halve(observed), halve(valid))
            paste(half, part, made, box)
        return made

    def _parts(self, level: int, box: Box) -> Iterator[tuple[Box, Box]]:
        """Yield the parts of a coarse tile that are not absent, and their place one level finer."""
        for part in split(box, _PART_PX, _PART_PX):
            if not self._is_absent(level, part):
                yield part, self._finer(level, part)

    def _state(
        self, level: int, box: Box, channels: Channels, *, was_read: bool
    ) -> NDArray[np.uint8] | None:
        inside = box.clip(self.levels[level].shape)
        if inside == box and not self.has_mask and not self._unreadable:
            return None
        state = np.full((box.rows, box.cols), NO_DATA, np.uint8)
        for place in self._tiles_in(level, inside):
            tile = self._tile_state(level, place, channels, was_read)
            if tile is None:
                state[relative(place, box).clip(state.shape).slices] = OBSERVED
            else:
                paste(tile, place, state, box)
        return state if state.any() else None

    def _tile_state(
        self, level: int, place: Box, channels: Channels, was_read: bool
    ) -> NDArray[np.uint8] | None:
        """Return what is known of a tile; None if all are observed."""
        if self.has_mask and self._is_absent(level, place):
            return np.full((place.rows, place.cols), NO_DATA, np.uint8)
        holes = self._unreadable.get((level, place.row, place.col), [])
        if any(hole.box == place for hole in holes):
            return np.full((place.rows, place.cols), UNREADABLE, np.uint8)
        state = None
        if self.has_mask or level >= self._n_stored:
            key = "state", level, place.row, place.col, channels, was_read
            make = partial(self._make_state, level, place, channels, was_read)
            cached = self._cache.fetch(key, make)
            state = cached if cached.size else None
        if holes:
            state = np.zeros((place.rows, place.cols), np.uint8) if state is None else state.copy()
            for hole in holes:
                state[relative(hole.box, place).slices] = UNREADABLE
        return state

    def _make_state(
        self, level: int, place: Box, channels: Channels, was_read: bool
    ) -> NDArray[np.uint8]:
        if level < self._n_stored:

            def read(level: int, box: Box) -> NDArray[np.uint8]:
                valid = self._backend.read_valid(level, box, channels)
                return np.where(valid, OBSERVED, NO_DATA).astype(np.uint8)

            def lost(box: Box) -> NDArray[np.uint8]:
                return np.full((box.rows, box.cols), UNREADABLE, np.uint8)

            state, _ = self._read_stored(level, place, read, lost)
        else:
            state = np.full((place.rows, place.cols), NO_DATA, np.uint8)
            for part, there in self._parts(level, place):
                finer = self._state(level - 1, there, channels, was_read=was_read)
                if finer is None:
                    state[relative(part, place).slices] = OBSERVED
                    continue
                shares = (
                    halve((finer == n).astype(np.float32)[..., None])
                    for n in (OBSERVED, UNREADABLE)
                )
                paste(majority(*shares), part, state, place)
        return state if state.any() else np.empty((0, 0), np.uint8)

    def blend(self, total: NDArray[np.float32], share: NDArray[np.float32]) -> NDArray[Any]:
        """Turn sums `(rows, cols, channels)` over valid pixels, a share of each, into their mean.

        Where less than half of a pixel is valid there is background.
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


def majority(observed: NDArray[np.float32], unreadable: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Tell what is known of pixels that are made of several.

    `observed`, `unreadable`: shares of what they are made of, `(rows, cols, 1)`. Returns: uint8
    `(rows, cols)`; a pixel is observed if half of it is.
    """
    missing = np.where(2 * unreadable >= 1 - observed, UNREADABLE, NO_DATA)
    return np.asarray(np.where(observed >= 0.5, OBSERVED, missing)[..., 0], np.uint8)

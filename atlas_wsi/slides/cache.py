"""Decoded tiles, bounded in bytes and shared by threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from numpy.typing import NDArray

DEFAULT_CACHE_BYTES = 256 * 2**20


class TileCache:
    """Least recently used tiles; a tile is decoded once, however many threads want it."""

    def __init__(self, max_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        self.max_bytes = max_bytes
        self._tiles: OrderedDict[Hashable, NDArray[Any]] = OrderedDict()
        self._pending: dict[Hashable, Future[NDArray[Any]]] = {}
        self._n_bytes = 0
        self._lock = threading.Lock()

    @property
    def n_bytes(self) -> int:
        """Bytes held now."""
        return self._n_bytes

    def fetch(self, key: Hashable, decode: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """Return the tile of a key, decoding it if needed."""
        with self._lock:
            tile = self._tiles.get(key)
            if tile is not None:
                self._tiles.move_to_end(key)
                return tile
            pending = self._pending.get(key)
            if pending is None:
                mine: Future[NDArray[Any]] = Future()
                self._pending[key] = mine
        if pending is not None:
            return pending.result()
        try:
            tile = decode()
        except BaseException as error:
            with self._lock:
                del self._pending[key]
            mine.set_exception(error)
            raise
        tile.flags.writeable = False
        with self._lock:
            del self._pending[key]
            self._keep(key, tile)
        mine.set_result(tile)
        return tile

    def _keep(self, key: Hashable, tile: NDArray[Any]) -> None:
        self._tiles[key] = tile
        self._n_bytes += tile.nbytes
        while self._n_bytes > self.max_bytes:
            _, oldest = self._tiles.popitem(last=False)
            self._n_bytes -= oldest.nbytes

    def clear(self) -> None:
        """Forget all tiles."""
        with self._lock:
            self._tiles.clear()
            self._n_bytes = 0

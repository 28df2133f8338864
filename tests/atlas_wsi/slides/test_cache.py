"""Laws of the tile cache."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from atlas_wsi.slides.cache import TileCache


def test_a_tile_is_decoded_once_however_many_threads_want_it():
    cache, decoded, gate = TileCache(), [], threading.Barrier(8)

    def decode():
        decoded.append(threading.get_ident())
        threading.Event().wait(0.05)
        return np.arange(12)

    def want(_):
        gate.wait()
        return cache.fetch("tile", decode)

    with ThreadPoolExecutor(8) as pool:
        tiles = list(pool.map(want, range(8)))
    assert len(decoded) == 1
    assert all(tile is tiles[0] for tile in tiles)


def test_the_cache_stays_within_its_bytes_and_drops_the_oldest():
    cache = TileCache(max_bytes=1000)
    for key in range(20):
        cache.fetch(key, lambda: np.zeros(100, np.uint8))
        assert cache.n_bytes <= 1000
    assert cache.n_bytes == 1000
    cache.fetch(10, lambda: pytest.fail("the tenth was kept"))
    made = []
    cache.fetch(9, lambda: made.append(1) or np.zeros(100, np.uint8))
    assert made
    cache.fetch(10, lambda: pytest.fail("used a moment ago"))


def test_a_tile_larger_than_the_cache_is_still_returned():
    cache = TileCache(max_bytes=10)
    assert cache.fetch("big", lambda: np.ones(100, np.uint8)).sum() == 100


def test_a_failure_reaches_everybody_and_is_not_kept():
    cache, gate = TileCache(), threading.Barrier(4)

    def fail():
        threading.Event().wait(0.05)
        raise OSError("damaged")

    def want(_):
        gate.wait()
        with pytest.raises(OSError, match="damaged"):
            cache.fetch("tile", fail)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(want, range(4)))
    assert cache.fetch("tile", lambda: np.ones(1)).sum() == 1


def test_cached_tiles_cannot_be_changed():
    tile = TileCache().fetch("tile", lambda: np.zeros(3))
    with pytest.raises(ValueError, match="read-only"):
        tile[0] = 1

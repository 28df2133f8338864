"""The contract of a slide format's reader."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from atlas_wsi.errors import UnsupportedFormatError
from atlas_wsi.grid import Box

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from atlas_wsi.slides.backend import Backend, Level


class BackendTests:
    """What every reader does; a subclass sets `open_file` and has a fixture `path`: its file."""

    open_file: Callable[[Path], Backend]

    @pytest.fixture
    def backend(self, path: Path) -> Iterator[Backend]:
        opened = type(self).open_file(path)
        yield opened
        opened.close()

    @pytest.fixture
    def whole(self, backend: Backend) -> list[NDArray[Any]]:
        levels = backend.meta.levels
        return [backend.read_block(i, whole_of(level.shape)) for i, level in enumerate(levels)]

    def test_levels_are_ordered_and_described(self, backend: Backend) -> None:
        meta = backend.meta
        assert meta.levels[0].downsample == (1.0, 1.0)
        for finer, coarser in zip(meta.levels, meta.levels[1:], strict=False):
            assert coarser.shape[0] <= finer.shape[0]
            assert all(c > f for c, f in zip(coarser.downsample, finer.downsample, strict=True))
            for axis in (0, 1):
                fits = meta.levels[0].shape[axis] / coarser.downsample[axis]
                assert abs(fits - coarser.shape[axis]) <= 1
        assert len(meta.channel_names) == len(meta.background) == meta.n_channels
        assert meta.format
        assert meta.backend
        assert (meta.mpp is None) == (meta.mpp_source == "")

    def test_blocks_have_the_promised_shape_and_type(self, backend: Backend) -> None:
        for index, level in enumerate(backend.meta.levels):
            rows, cols = (min(t, n) for t, n in zip(level.tile, level.shape, strict=True))
            block = backend.read_block(index, Box(row=0, col=0, rows=rows, cols=cols))
            assert block.shape == (rows, cols, backend.meta.n_channels)
            assert block.dtype == np.dtype(backend.meta.dtype)
            valid = backend.read_valid(index, Box(row=0, col=0, rows=rows, cols=cols))
            assert valid.shape == (rows, cols)
            assert valid.dtype == bool
            assert valid.all() or backend.meta.has_mask

    def test_a_block_is_a_part_of_the_level(
        self, backend: Backend, whole: list[NDArray[Any]]
    ) -> None:
        rng = np.random.default_rng(1)
        for index, level in enumerate(backend.meta.levels):
            for box in _boxes(rng, level):
                block = backend.read_block(index, box)
                np.testing.assert_array_equal(block, whole[index][box.slices], err_msg=str(box))

    def test_levels_show_the_same_picture(
        self, backend: Backend, whole: list[NDArray[Any]]
    ) -> None:
        full = whole[0].astype(float)
        for level, pixels in zip(backend.meta.levels[1:], whole[1:], strict=True):
            rows, cols = (round(d) for d in level.downsample)
            n, m = (
                min(p, f // d)
                for p, f, d in zip(pixels.shape[:2], full.shape[:2], (rows, cols), strict=True)
            )
            mean = full[: n * rows, : m * cols].reshape(n, rows, m, cols, -1).mean(axis=(1, 3))
            agreement = np.corrcoef(mean.ravel(), pixels[:n, :m].astype(float).ravel())[0, 1]
            assert agreement > 0.9

    def test_a_block_belongs_to_the_caller(self, backend: Backend) -> None:
        level = backend.meta.levels[0]
        box = Box(row=0, col=0, rows=min(64, level.shape[0]), cols=min(64, level.shape[1]))
        first = backend.read_block(0, box)
        kept = first.copy()
        first[...] = 0
        np.testing.assert_array_equal(backend.read_block(0, box), kept)

    def test_threads_do_not_disturb_each_other(
        self, backend: Backend, whole: list[NDArray[Any]]
    ) -> None:
        boxes = _boxes(np.random.default_rng(2), backend.meta.levels[0]) * 4
        with ThreadPoolExecutor(4) as pool:
            blocks = list(pool.map(lambda box: backend.read_block(0, box), boxes))
        for box, block in zip(boxes, blocks, strict=True):
            np.testing.assert_array_equal(block, whole[0][box.slices])

    def test_another_format_is_refused(self, tmp_path: Path) -> None:
        other = tmp_path / "other.svs"
        other.write_text("not a slide\n" * 100)
        with pytest.raises(UnsupportedFormatError, match=r"other\.svs"):
            type(self).open_file(other)


def whole_of(shape: tuple[int, int]) -> Box:
    """Return the box of a whole level."""
    return Box(row=0, col=0, rows=shape[0], cols=shape[1])


def _boxes(rng: np.random.Generator, level: Level) -> list[Box]:
    """Make boxes inside one tile, over the edges of tiles, and at the level's far corner."""
    rows, cols = level.shape
    boxes = [
        Box(row=rows - 1, col=cols - 1, rows=1, cols=1),
        Box(row=rows // 2, col=0, rows=1, cols=cols),
        Box(row=0, col=cols // 2, rows=rows, cols=1),
    ]
    for _ in range(5):
        row, col = int(rng.integers(rows)), int(rng.integers(cols))
        height, width = int(rng.integers(1, rows - row + 1)), int(rng.integers(1, cols - col + 1))
        boxes.append(Box(row=row, col=col, rows=min(height, 300), cols=min(width, 300)))
    return boxes

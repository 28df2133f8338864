"""Tissue as the tiles that other programs chose: their HDF5 files of coordinates."""

from __future__ import annotations

import math
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas_wsi.errors import DatasetError
from atlas_wsi.files import require_extra
from atlas_wsi.tissue.mask import TissueMask

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from atlas_wsi.grid import Grid
    from atlas_wsi.slides.slide import Slide

SUFFIXES = (".h5", ".hdf5")
MAX_TILES = 5 * 10**6
MAX_CHUNK_BYTES = 2**28
_GZIP_RATIO = 1032  # no byte of deflate becomes more
_FILTERS = (1, 2, 3)  # of HDF5: gzip, shuffle, checksum


def tiles_to_mask(path: str | os.PathLike[str], slide: Slide, grid: Grid) -> TissueMask:
    """Make a mask of the tiles that CLAM, TRIDENT, WSInfer or STAMP cut."""
    path = Path(path)
    with open_hdf5(path) as file:
        corners, size, kind = _read_tiles(file, path, slide)
    rows, cols = slide.shape
    touches = (corners < (cols, rows)).all(axis=1) & (corners + size > 0).all(axis=1)
    if not touches.any():
        low, high = corners.min(axis=0), corners.max(axis=0)
        raise DatasetError(
            f"No tile of {path} touches {slide.name}: their corners are at x {low[0]:.0f} to "
            f"{high[0]:.0f}, y {low[1]:.0f} to {high[1]:.0f}, the slide has {cols} x {rows} "
            "pixels.",
            hint="Is it a file of this slide?",
        )
    mask = _union(corners[touches], size, grid)
    return TissueMask(mask=mask, grid=grid, method=f"tiles of {kind}, {path.name}", is_drawn=True)


@contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """Open an untrusted HDF5 file."""
    h5py = require_extra("h5py", "embed", to=f"Reading {path}", error=DatasetError)
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, zlib.error) as error:
        raise DatasetError(f"{path} is not readable HDF5: {error}") from error


def layout_of(file: Any) -> str:
    """Tell whose layout a file has, by its keys."""
    coords = file.get("coords")
    if getattr(coords, "shape", None) is None:
        return ""
    keys = set(coords.attrs)
    if "unit" in file.attrs and "tile_size_um" in file.attrs:
        return "STAMP"
    if "patch_size_level0" in keys or {"level0_magnification", "target_magnification"} <= keys:
        return "TRIDENT"
    if "patch_spacing_um_px" in keys:
        return "WSInfer"
    if {"patch_size", "patch_level"} <= keys or "features" in file:
        return "CLAM"
    return ""


def _read_tiles(file: Any, path: Path, slide: Slide) -> tuple[NDArray[np.float64], float, str]:
    """Return the level-0 corners `(x, y)` of the tiles, their side, and who wrote them."""
    layout = layout_of(file)
    if not layout:
        raise DatasetError(
            f"{path} holds no tiles of CLAM, TRIDENT, WSInfer or STAMP: it has no 'coords' with "
            "their attributes.",
            hint="`atlas-wsi inspect` shows its content.",
        )
    coords = _read_coords(file["coords"], path)
    attrs = file["coords"].attrs
    if layout == "STAMP":
        if file.attrs["unit"] not in ("um", b"um"):
            raise DatasetError(f"{path} has coordinates in {file.attrs['unit']}, expected um.")
        mpp = slide.require_mpp()
        size = _number(file.attrs, "tile_size_um", path) / mpp[1]
        coords = coords / mpp[::-1]
    elif layout == "TRIDENT":
        if "patch_size_level0" in attrs:
            size = _number(attrs, "patch_size_level0", path)
        else:
            ratio = _number(attrs, "level0_magnification", path) / _number(
                attrs, "target_magnification", path
            )
            size = _number(attrs, "patch_size", path) * ratio
        expected = [attrs.get("level0_width"), attrs.get("level0_height")]
        _check_slide([n for n in expected if n is not None], slide, path)
    elif "patch_size" not in attrs:
        raise DatasetError(
            f"{path} does not state the size of its tiles: 'coords' has no 'patch_size'.",
            hint="CLAM's feature files do not contain it; give its patch file.",
        )
    else:
        size = _number(attrs, "patch_size", path) * _clam_downsample(attrs, path, slide)
    if not (np.isfinite(coords).all() and 0 < size < 1e7):
        raise DatasetError(f"{path} holds tiles of {size:g} pixels or invalid corners.")
    return coords, size, layout


def _clam_downsample(attrs: Any, path: Path, slide: Slide) -> float:
    level = int(_number(attrs, "patch_level", path, least=0)) if "patch_level" in attrs else 0
    if level == 0:
        _check_slide(np.ravel(attrs.get("level_dim", [])).tolist(), slide, path)
        return 1.0
    if "downsample" in attrs:
        return _number(attrs, "downsample", path)
    if level >= len(slide.downsamples):
        raise DatasetError(f"{path} has tiles of level {level}, {slide.name} has no such level.")
    return float(slide.downsamples[level][1])


def _read_coords(coords: Any, path: Path) -> NDArray[np.float64]:
    if coords.ndim != 2 or coords.shape[1] != 2 or coords.dtype.kind not in "iuf":
        raise DatasetError(
            f"{path}: 'coords' is {coords.dtype} {coords.shape}, expected numbers (tiles, 2)."
        )
    if not 0 < len(coords) <= MAX_TILES:
        raise DatasetError(f"{path} holds {len(coords)} tiles, expected 1 to {MAX_TILES}.")
    chunk = math.prod(coords.chunks or (1,)) * coords.dtype.itemsize
    if chunk > MAX_CHUNK_BYTES or coords.is_virtual or coords.external:
        raise DatasetError(f"{path}: 'coords' has an unsupported storage layout.")
    plist = coords.id.get_create_plist()
    codes = [plist.get_filter(k)[0] for k in range(plist.get_nfilters())]
    if not set(codes) <= set(_FILTERS) or len(set(codes)) < len(codes):
        raise DatasetError(
            f"{path}: 'coords' is packed by the filters {codes}; gzip is read.",
            hint="Write it again: h5repack -f GZIP=4 IN OUT.",
        )
    if _FILTERS[0] in codes:
        _check_chunks(coords, path)
    return np.asarray(coords[...], np.float64)


def _check_chunks(coords: Any, path: Path) -> None:
    """Refuse gzip that grows without end: HDF5 makes room for all of it."""
    for k in range(coords.id.get_num_chunks()):
        info = coords.id.get_chunk_info(k)
        if info.size * _GZIP_RATIO <= MAX_CHUNK_BYTES:
            continue
        _, stored = coords.id.read_direct_chunk(info.chunk_offset)
        inflate = zlib.decompressobj()
        inflate.decompress(stored, MAX_CHUNK_BYTES)
        if inflate.unconsumed_tail:
            raise DatasetError(f"{path}: a chunk of 'coords' grows beyond {MAX_CHUNK_BYTES} bytes.")


def _check_slide(width_height: list[Any], slide: Slide, path: Path) -> None:
    rows, cols = slide.shape
    if len(width_height) == 2 and [int(n) for n in width_height] != [cols, rows]:
        raise DatasetError(
            f"{path} was made from a slide of {width_height[0]} x {width_height[1]} pixels, "
            f"{slide.name} has {cols} x {rows}.",
            hint="Give the file of this slide.",
        )


def _number(attrs: Any, name: str, path: Path, *, least: float = 1e-9) -> float:
    """Return an attribute that is a number, or the first of several."""
    value = np.ravel(attrs[name])
    if not (value.size and value.dtype.kind in "iuf" and least <= float(value[0]) < math.inf):
        raise DatasetError(f"{path}: the attribute {name} is {attrs[name]!r}, expected a number.")
    return float(value[0])


def _union(corners: NDArray[np.float64], size: float, grid: Grid) -> NDArray[np.bool_]:
    """Count the tiles over each cell by the sums of steps up and down at their corners."""
    steps = np.zeros((grid.shape[0] + 1, grid.shape[1] + 1), np.int32)
    ends = []
    for axis, place in ((0, corners[:, 1]), (1, corners[:, 0])):
        step, n = grid.step_px[axis], grid.shape[axis]
        first = np.clip(np.rint(place / step), 0, n - 1).astype(np.intp)
        last = np.clip(np.rint((place + size) / step), first + 1, n).astype(np.intp)
        ends.append((first, last))
    (top, bottom), (left, right) = ends
    for rows, cols in ((top, left), (bottom, right)):
        np.add.at(steps, (rows, cols), 1)
    for rows, cols in ((top, right), (bottom, left)):
        np.add.at(steps, (rows, cols), -1)
    covered: NDArray[np.bool_] = steps.cumsum(axis=0).cumsum(axis=1)[:-1, :-1] > 0
    return covered

"""Made-up scenes and OME-Zarr images: for tests, demos and measurements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from numpy.typing import NDArray

BAND_NAMES = ("red", "green", "blue", "nir", "swir1", "swir2")
_FULL_SCALE = {"uint8": 255.0, "uint16": 10_000.0, "int16": 10_000.0, "float32": 1.0}
_BLOCK_PX = 256
_FIELD_PX = 48
_NOISE_STEP_PX = 16
_RIVER_PX = 6
_CORNER_M = (500_000.0, 5_200_000.0)
_CORNER_DEGREES = (15.0, 47.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cover:
    """How a kind of ground looks in pixels of about 10 m."""

    reflectance: tuple[float, float, float, float, float, float]
    """Mean of each band as a share of the full scale."""
    spread: float
    """Standard deviation from one patch to the next, as a share of the mean."""
    grain: float
    """Standard deviation from one pixel to the next, as a share of the mean."""


_COVERS = (
    _Cover(reflectance=(0.16, 0.26, 0.33, 0.05, 0.03, 0.02), spread=0.0, grain=0.02),  # water
    _Cover(reflectance=(0.16, 0.25, 0.29, 0.55, 0.25, 0.12), spread=0.0, grain=0.06),  # wood
    _Cover(reflectance=(0.42, 0.42, 0.46, 0.40, 0.45, 0.42), spread=0.0, grain=0.24),  # town
    _Cover(reflectance=(0.25, 0.35, 0.36, 0.60, 0.35, 0.20), spread=0.1, grain=0.05),  # pasture
    _Cover(reflectance=(0.58, 0.52, 0.46, 0.55, 0.55, 0.40), spread=0.2, grain=0.03),  # grain
    _Cover(reflectance=(0.47, 0.42, 0.40, 0.42, 0.52, 0.48), spread=0.2, grain=0.04),  # soil
)
_WATER, _WOOD, _TOWN, _PASTURE, _SOIL = 0, 1, 2, 3, 5


def make_scene(
    path: str | os.PathLike[str],
    shape: tuple[int, int] = (1024, 1536),
    *,
    bands: int = 3,
    dtype: str = "uint8",
    crs: str = "EPSG:32633",
    gsd: float = 10.0,
    nodata: float | None = None,
    overviews: bool = True,
    driver: Literal["GTiff", "COG"] = "GTiff",
    seed: int = 0,
    period_px: int | None = None,
) -> None:
    """Write a georeferenced scene with a river, woods, fields and towns.

    A square of `period_px` is drawn and repeated, which is fast for large scenes.
    """
    if not 1 <= bands <= len(BAND_NAMES) or dtype not in _FULL_SCALE:
        raise ValueError(f"No scene with {bands} bands of {dtype} can be made.")
    import rasterio.shutil
    from rasterio.crs import CRS
    from rasterio.enums import ColorInterp, Resampling
    from rasterio.io import MemoryFile
    from rasterio.transform import from_origin

    place = CRS.from_user_input(crs)
    corner = _CORNER_DEGREES if place.is_geographic else _CORNER_M
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff",
            height=shape[0],
            width=shape[1],
            count=bands,
            dtype=dtype,
            crs=place,
            transform=from_origin(*corner, gsd, gsd),
            nodata=nodata,
            tiled=True,
        ) as dataset:
            _write_bands(dataset, np.dtype(dtype), nodata, seed, period_px)
            dataset.descriptions = BAND_NAMES[:bands]
            if bands >= 3:
                colors = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
                dataset.colorinterp = colors + (ColorInterp.undefined,) * (bands - 3)
            steps = range(1, max(0, (max(shape) - 1).bit_length() - 8) + 1)
            if overviews and steps:
                dataset.build_overviews([2**step for step in steps], Resampling.average)
        options: dict[str, Any] = {"tiled": True, "blockxsize": _BLOCK_PX, "blockysize": _BLOCK_PX}
        options["copy_src_overviews"] = overviews
        if driver == "COG":
            options = {"blocksize": _BLOCK_PX, "overviews": "AUTO" if overviews else "NONE"}
        with memory.open() as dataset:
            rasterio.shutil.copy(dataset, path, driver=driver, compress="deflate", **options)


def _write_bands(
    dataset: Any, dtype: np.dtype[Any], nodata: float | None, seed: int, period_px: int | None
) -> None:
    rng = np.random.default_rng(seed)
    shape = (period_px, period_px) if period_px else dataset.shape
    cover, gain = _lay_out(rng, shape)
    grain = rng.standard_normal(shape, dtype=np.float32)
    grain *= np.array([kind.grain for kind in _COVERS], np.float32)[cover]
    gain += grain
    swath = _swath(dataset.shape)
    for band in range(dataset.count):
        mean = np.array([kind.reflectance[band] for kind in _COVERS], np.float32)[cover]
        scaled = np.clip(mean * gain, 0.02, 1.0) * np.float32(_FULL_SCALE[dtype.name])
        samples = scaled if dtype.kind == "f" else np.rint(scaled).astype(dtype)
        if period_px:
            times = [-(-n // period_px) for n in dataset.shape]
            samples = np.tile(samples, times)[: dataset.shape[0], : dataset.shape[1]]
        if nodata is not None:
            samples[~swath] = nodata
        dataset.write(samples, band + 1)


def _lay_out(
    rng: np.random.Generator, shape: tuple[int, int]
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Return what covers each pixel, and how bright it is in its kind."""
    patch, patch_of = _fields(rng, shape)
    kinds = rng.integers(_PASTURE, _SOIL + 1, len(patch))
    spread = np.array([kind.spread for kind in _COVERS])[kinds]
    brightness = np.maximum(0.4, 1.0 + spread * rng.standard_normal(len(patch))).astype(np.float32)
    cover, gain = kinds[patch_of], brightness[patch_of]
    wood, town, water = (_noise(rng, shape, sigma) for sigma in (5.0, 3.0, 12.0))
    for where, kind in (
        (wood > np.quantile(wood, 0.75), _WOOD),
        (town > np.quantile(town, 0.93), _TOWN),
        (water > np.quantile(water, 0.95), _WATER),
        (_river(rng, shape), _WATER),
    ):
        cover[where], gain[where] = kind, 1.0
    return cover, gain


def _fields(
    rng: np.random.Generator, shape: tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return the middles of fields, and the field of each pixel."""
    from scipy.spatial import KDTree

    n_fields = max(4, shape[0] * shape[1] // _FIELD_PX**2)
    middles = rng.random((n_fields, 2)) * shape
    angle = np.deg2rad(25.0)
    # fields are longer than wide, and lie side by side
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * (1.0, 2.0)
    rows, cols = np.indices(shape, dtype=np.float32)
    pixels = np.stack([rows.ravel(), cols.ravel()], axis=1) @ turn
    _, nearest = KDTree(middles @ turn).query(pixels)
    return middles, nearest.reshape(shape)


def _noise(rng: np.random.Generator, shape: tuple[int, int], sigma: float) -> NDArray[np.float32]:
    """Return smooth noise around 0 with features of about `sigma` times 16 pixels."""
    from scipy.ndimage import gaussian_filter, map_coordinates

    coarse = tuple(n // _NOISE_STEP_PX + 2 for n in shape)
    field = gaussian_filter(rng.standard_normal(coarse, dtype=np.float32), sigma, mode="wrap")
    rows, cols = (np.arange(n, dtype=np.float32) / _NOISE_STEP_PX for n in shape)
    where = np.broadcast_arrays(rows[:, None], cols[None, :])
    return np.asarray(map_coordinates(field, where, order=1, output=np.float32))


def _river(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return True along a winding line from the left edge to the right one."""
    along = np.arange(shape[1])
    start, slow, fast = rng.random(3)
    middle = 0.3 + 0.4 * start
    middle = middle + 0.1 * np.sin(along / 150 + 6 * slow) + 0.03 * np.sin(along / 40 + 6 * fast)
    return np.asarray(np.abs(np.arange(shape[0])[:, None] - middle * shape[0]) < _RIVER_PX)


def _swath(shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return True between two slanted edges."""
    rows, cols = (np.linspace(0.0, 1.0, n) for n in shape)
    across = cols[None, :] + 0.15 * rows[:, None]
    return np.asarray((across > 0.15) & (across < 1.05))


def make_ome_zarr(
    path: str | os.PathLike[str],
    pixels: NDArray[Any],
    *,
    mpp: float | tuple[float, float] | None = 0.5,
    unit: str = "micrometer",
    version: Literal["0.4", "0.5"] = "0.5",
    axes: str = "cyx",
    levels: int = 3,
    chunk: int = 256,
    channels: Sequence[tuple[str, str]] | None = None,
) -> None:
    """Write pixels `(rows, cols, channels)` of size `mpp` in `unit` as OME-Zarr."""
    import zarr
    from zarr.storage import ZipStore

    size = (1.0, 1.0) if mpp is None else (mpp, mpp) if isinstance(mpp, (int, float)) else mpp
    datasets = []
    for level in range(levels):
        scale = {"y": size[0] * 2.0**level, "x": size[1] * 2.0**level}
        transformation = {"type": "scale", "scale": [scale.get(axis, 1.0) for axis in axes]}
        datasets.append({"path": str(level), "coordinateTransformations": [transformation]})
    image = {"axes": [_axis(a, None if mpp is None else unit) for a in axes], "datasets": datasets}
    ome: dict[str, Any] = {"multiscales": [image]}
    if channels:
        ome["omero"] = {"channels": [{"label": name, "color": code} for name, code in channels]}
    image |= {"version": version} if version == "0.4" else {}
    is_zip = str(path).endswith(".zip")
    group = zarr.create_group(
        ZipStore(str(path), mode="w") if is_zip else str(path),
        zarr_format=2 if version == "0.4" else 3,
        overwrite=not is_zip,
        attributes=ome if version == "0.4" else {"ome": {"version": version, **ome}},
    )
    for level in range(levels):
        stored = _arranged(pixels, axes)
        sides = {"y": chunk, "x": chunk}
        array = group.create_array(
            str(level),
            shape=stored.shape,
            dtype=stored.dtype,
            chunks=tuple(min(sides.get(a, 1), n) for a, n in zip(axes, stored.shape, strict=True)),
            dimension_names=list(axes) if version == "0.5" else None,
            chunk_key_encoding={"name": "default" if version == "0.5" else "v2", "separator": "/"},
        )
        array[...] = stored
        pixels = _halved(pixels)
    group.store.close()


def _arranged(pixels: NDArray[Any], axes: str) -> NDArray[Any]:
    """Return `(y, x, c)` pixels with the axes asked for."""
    if "c" not in axes:
        pixels = pixels[..., 0]
    present = [axis for axis in "yxc" if axis in axes]
    turned = pixels.transpose([present.index(axis) for axis in axes if axis in present])
    return turned.reshape([pixels.shape[present.index(a)] if a in present else 1 for a in axes])


def _axis(name: str, unit: str | None) -> dict[str, str]:
    kind = {"t": "time", "c": "channel"}.get(name, "space")
    axis = {"name": name, "type": kind}
    if kind == "space" and unit:
        axis["unit"] = unit
    return axis


def _halved(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return means of 2 x 2 pixels, an odd last row or column by itself."""
    from atlas_wsi.slides.resample import as_dtype, halve

    return as_dtype(halve(pixels.astype(np.float32)), pixels.dtype)

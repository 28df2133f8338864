"""Made-up slides that scanners could have written: for tests, demos and measurements.

Tissue is a texture of eosin pink with hematoxylin nuclei, repeated inside smooth outlines; so a
tile inside or outside is encoded once, and a slide of gigapixels takes seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np
import tifffile

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from numpy.typing import NDArray

_PERIOD_PX = 2048
_STEP = 4
_MOST_LEVELS = 5
_HAEMATOXYLIN = (0.650, 0.704, 0.286)  # optical densities of the stains (Ruifrok, Johnston 2001)
_EOSIN = (0.072, 0.990, 0.105)
_EDGE = 0.02
_BIG_PX = 4_000_000_000


def make_svs(
    path: str | os.PathLike[str],
    shape: tuple[int, int] = (2048, 3072),
    *,
    mpp: float = 0.5,
    quality: int = 75,
    tile: int = 256,
    seed: int = 0,
    tissue: float = 0.3,
    levels: int = 3,
    whole_tiles: bool = False,
) -> None:
    """Write a slide as an Aperio scanner would; gigapixels take seconds with `whole_tiles`."""
    if not 1 <= levels <= _MOST_LEVELS:
        raise ValueError(f"A slide has 1 to {_MOST_LEVELS} levels, not {levels}.")
    rng = np.random.default_rng(seed)
    outline = _Outline.random(rng, shape, tissue)
    colors = [_texture(seed, mpp, _PERIOD_PX if max(shape) > 2 * _PERIOD_PX else _PERIOD_PX // 2)]
    for _ in range(1, levels):
        colors.append(_reduce(colors[-1]))
    header = "Aperio Image Library v12.0.15\r\n{cols}x{rows} "
    facts = f"|AppMag = {10 / mpp:g}|MPP = {mpp:g}|Filename = synthetic-{seed}"
    with tifffile.TiffWriter(path, bigtiff=shape[0] * shape[1] > _BIG_PX) as tif:
        for index in range(levels):
            painter = _Painter(outline, colors[index], _STEP**index, 0.0 if whole_tiles else _EDGE)
            rows, cols = painter.shape
            tif.write(
                _encode_tiles(painter, tile, quality),
                shape=(rows, cols, 3),
                dtype=np.uint8,
                tile=(tile, tile),
                subsampling=(2, 2),
                description=header.format(rows=shape[0], cols=shape[1])
                + f"[0,0 {shape[1]}x{shape[0]}] ({tile}x{tile}) "
                + (f"-> {cols}x{rows} " if index else "")
                + f"JPEG/RGB Q={quality}{facts}",
                compression="jpeg",
                photometric="ycbcr",
                software=False,
                metadata=None,
            )
            if index == 0:
                thumbnail = _overview(outline, colors)
                _write_strips(tif, thumbnail, header.format(rows=rows, cols=cols) + "-> -" + facts)
        _write_strips(tif, _label(), "Aperio Image Library v12.0.15\r\nlabel 192x128", kind=1)
        _write_strips(tif, thumbnail, "Aperio Image Library v12.0.15\r\nmacro 1280x431", kind=9)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outline:
    """Where tissue is, as a smooth height over the slide; tissue is above 0."""

    shape: tuple[int, int]
    """Level-0 rows and columns."""
    height: NDArray[np.float32]
    """Heights at the corners of a coarse grid over the slide."""

    @classmethod
    def random(cls, rng: np.random.Generator, shape: tuple[int, int], tissue: float) -> _Outline:
        """Make some blobs away from the border that cover a share of the slide."""
        from scipy.ndimage import gaussian_filter

        knots = [max(16, round(256 * n / max(shape))) for n in shape]
        field = rng.standard_normal(knots, dtype=np.float32)
        field = gaussian_filter(field, 10.0) * 10.0 + gaussian_filter(field, 3.0)
        y, x = (np.abs(np.linspace(-1, 1, n, dtype=np.float32)) for n in knots)
        field -= 1.5 * np.maximum(y[:, None], x[None, :]) ** 6
        return cls(shape=shape, height=field - np.quantile(field, 1.0 - tissue))

    def at(self, y: NDArray[Any], x: NDArray[Any]) -> NDArray[np.float32]:
        """Return the height at level-0 rows `y` and columns `x`."""
        i, v = self._knots(y, 0)
        j, u = self._knots(x, 1)
        upper, lower = self.height[i], self.height[i + 1]
        rows = upper * (1 - v[:, None]) + lower * v[:, None]
        return np.asarray(rows[:, j] * (1 - u) + rows[:, j + 1] * u)

    def range_in(self, y: tuple[float, float], x: tuple[float, float]) -> tuple[float, float]:
        """Return lower and upper bounds of the height in a rectangle."""
        i, _ = self._knots(np.array(y), 0)
        j, _ = self._knots(np.array(x), 1)
        part = self.height[i[0] : i[1] + 2, j[0] : j[1] + 2]
        return float(part.min()), float(part.max())

    def _knots(self, position: NDArray[Any], axis: int) -> tuple[NDArray[Any], NDArray[Any]]:
        n = self.height.shape[axis]
        at = np.clip(position / self.shape[axis], 0, 1) * (n - 1)
        index = np.minimum(at.astype(np.intp), n - 2)
        return index, (at - index).astype(np.float32)


@dataclass(frozen=True, slots=True)
class _Painter:
    """Colors one level."""

    outline: _Outline
    """Where tissue is."""
    texture: NDArray[np.uint8]
    """What it looks like at this level, periodic."""
    downsample: int
    """Level-0 pixels per pixel of the level."""
    edge: float = _EDGE
    """Heights up to this from 0 mix tissue and glass; at 0, a square is one or the other."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the level."""
        rows, cols = self.outline.shape
        return max(1, rows // self.downsample), max(1, cols // self.downsample)

    def kind(self, row: int, col: int, size: int) -> bool | None:
        """Tell whether a square is all tissue, all glass, or (None) both."""
        y, x = row * self.downsample, col * self.downsample
        side = size * self.downsample
        low, high = self.outline.range_in((y, y + side), (x, x + side))
        if not self.edge:
            return low + high > 0
        return True if low > self.edge else False if high < -self.edge else None

    def paint(
        self, row: int, col: int, rows: int, cols: int, *, kind: bool | None = None
    ) -> NDArray[np.uint8]:
        """Return the pixels of a rectangle; `kind` as the method returns it, if known."""
        y, x = row + np.arange(rows), col + np.arange(cols)
        period = self.texture.shape[0]
        tissue = self.texture[np.ix_(y % period, x % period)]
        if kind is not None:
            return tissue if kind else _bytes(_glass(y, x))
        height = self.outline.at((y + 0.5) * self.downsample, (x + 0.5) * self.downsample)
        share = np.clip(height / _EDGE * 0.5 + 0.5, 0, 1)[..., None]
        return _bytes(tissue * share + _glass(y, x) * (1 - share))


def _encode_tiles(painter: _Painter, tile: int, quality: int) -> Iterator[bytes]:
    """Yield the JPEG stream of every tile; alike ones are encoded once."""
    period = painter.texture.shape[0]
    known: dict[tuple[bool, int, int], bytes] = {}
    rows, cols = painter.shape
    for row in range(0, rows, tile):
        for col in range(0, cols, tile):
            kind = painter.kind(row, col, tile)
            if kind is None:
                yield _encode(painter.paint(row, col, tile, tile), quality)
                continue
            key = (kind, row % period, col % period) if kind else (kind, 0, 0)
            if key not in known:
                pixels = painter.paint(row, col, tile, tile, kind=kind)
                known[key] = _encode(pixels, quality)
            yield known[key]


def _encode(pixels: NDArray[np.uint8], quality: int) -> bytes:
    return bytes(
        imagecodecs.jpeg8_encode(
            pixels, level=quality, colorspace="RGB", outcolorspace="YCBCR", subsampling="420"
        )
    )


def _write_strips(
    tif: tifffile.TiffWriter, pixels: NDArray[np.uint8], description: str, *, kind: int = 0
) -> None:
    tif.write(
        pixels,
        compression="jpeg",
        photometric="rgb",
        rowsperstrip=16,
        subfiletype=kind,
        description=description,
        metadata=None,
        software=False,
    )


@lru_cache(maxsize=2)
def _texture(seed: int, mpp: float, n: int) -> NDArray[np.uint8]:
    """Paint stained tissue that repeats without a seam."""
    from scipy.ndimage import gaussian_filter, zoom

    rng = np.random.default_rng(seed)
    eighth = gaussian_filter(rng.standard_normal((n // 8, n // 8)), 5.0 / mpp, mode="wrap")
    eosin = zoom(eighth / eighth.std(), 8, order=1, mode="grid-wrap", grid_mode=True)
    fibers = gaussian_filter(rng.standard_normal((n, n), dtype=np.float32), (0.6, 1.5), mode="wrap")
    eosin = 0.32 + 0.07 * eosin + 0.05 * fibers / fibers.std()
    radius_px = 3.5 / mpp
    seeds = rng.random((n, n), dtype=np.float32) < 0.1 / radius_px**2
    nuclei = gaussian_filter(seeds.astype(np.float32), radius_px / 1.5, mode="wrap")
    nuclei = np.clip(nuclei * radius_px**2 * 4.0 - 0.5, 0, 1)
    density = np.maximum(eosin, 0.05)[..., None] * np.array(_EOSIN, np.float32) + (0.8 * nuclei)[
        ..., None
    ] * np.array(_HAEMATOXYLIN, np.float32)
    return _bytes(245.0 * np.exp(-density))


def _glass(y: NDArray[Any], x: NDArray[Any]) -> NDArray[np.float32]:
    """Return the color of empty glass: almost white, with a little noise of period 16."""
    noise = ((y[:, None] % 16 * 7 + x[None, :] % 16 * 13) % 5).astype(np.float32)
    return np.stack([241.0 + noise * 0.5, 240.0 + noise * 0.5, 243.0 + noise * 0.5], axis=-1)


def _reduce(texture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    n = texture.shape[0] // _STEP
    mean = texture.reshape(n, _STEP, n, _STEP, 3).mean(axis=(1, 3), dtype=np.float32)
    return _bytes(mean)


def _overview(outline: _Outline, colors: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    painters = [_Painter(outline, texture, _STEP**i) for i, texture in enumerate(colors)]
    painter = [p for p in painters if max(p.shape) >= 1024 or p is painters[0]][-1]
    rows, cols = painter.shape
    pixels = painter.paint(0, 0, rows, cols)
    every = -(-max(rows, cols) // 1024)
    return np.ascontiguousarray(pixels[::every, ::every])


def _bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    return np.asarray(np.rint(values), dtype=np.uint8)


def _label() -> NDArray[np.uint8]:
    label = np.full((128, 192, 3), 235, np.uint8)
    label[24:104:16, 20:170] = 40
    return label

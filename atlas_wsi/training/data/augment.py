"""Changes of a tile that leave its class: turns, size, stain, light, blur."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFilter

if TYPE_CHECKING:
    from numpy.typing import NDArray

# optical density of hematoxylin, eosin and DAB, a row each (Ruifrok and Johnston 2001)
_HED = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]], dtype=np.float32)
_HED_INVERSE = np.linalg.inv(_HED).astype(np.float32)
# what air adds to clear red, green and blue seen from above, as a share of white
_AIR = np.array([0.06, 0.1, 0.19], dtype=np.float32)
_DENSITY = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)


def augment(
    tile: NDArray[np.uint8], rng: np.random.Generator, *, stain: bool, colors: float = 1.0
) -> NDArray[np.uint8]:
    """Change a tile `(rows, cols, 3)` at random."""
    rows, cols = tile.shape[:2]
    image = Image.fromarray(_turn(tile, rng))
    zoom = float(np.exp(rng.uniform(-0.22, 0.22)))
    image = _zoom(image, zoom, rng)
    if rng.random() < 0.15:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.2))))
    pixels = np.asarray(image)[:rows, :cols]
    return vary_colors(pixels, rng, stain=stain, strength=colors) if colors else pixels


def vary_colors(
    pixels: NDArray[np.uint8], rng: np.random.Generator, *, stain: bool, strength: float
) -> NDArray[np.uint8]:
    """Change the stain or light of a picture `(rows, cols, 3)`, and now and then its noise."""
    strength *= float(rng.random())
    if stain:
        pixels = _jitter_stain(pixels, rng, strength)
    else:
        pixels = _jitter_light(pixels, rng, strength)
    if rng.random() < 0.15:
        noise = rng.normal(0, rng.uniform(1, 5), pixels.shape)
        pixels = np.clip(pixels + noise, 0, 255).astype(np.uint8)
    return pixels


def _turn(tile: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    turns = int(rng.integers(4))
    tile = np.rot90(tile, turns if tile.shape[0] == tile.shape[1] else 2 * (turns // 2))
    return np.ascontiguousarray(tile[:, ::-1] if rng.random() < 0.5 else tile)


def _zoom(image: Image.Image, zoom: float, rng: np.random.Generator) -> Image.Image:
    """Enlarge a part, or shrink the tile into itself mirrored at its borders."""
    width, height = image.size
    if zoom >= 1:
        w, h = width / zoom, height / zoom
        x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
        box = (x, y, x + w, y + h)
        return image.resize((width, height), Image.Resampling.BILINEAR, box=box)
    small = np.asarray(
        image.resize((round(width * zoom), round(height * zoom)), Image.Resampling.BILINEAR)
    )
    pad = ((0, height - small.shape[0]), (0, width - small.shape[1]), (0, 0))
    return Image.fromarray(np.pad(small, pad, mode="reflect"))


def _jitter_stain(
    pixels: NDArray[np.uint8], rng: np.random.Generator, strength: float
) -> NDArray[np.uint8]:
    """Scale and shift each stain's density, and the light behind it."""
    stains = _DENSITY[pixels] @ _HED_INVERSE
    scale = np.exp(strength * rng.uniform(-0.5, 0.4, 3)).astype(np.float32)
    shift = (strength * rng.uniform(-0.06, 0.06, 3)).astype(np.float32)
    mixed = (_HED + strength * rng.normal(0, 0.06, (3, 3))).astype(np.float32)
    light = (strength * rng.uniform(-0.12, 0.06, 3)).astype(np.float32)
    density = (stains * scale + shift) @ mixed - light
    return np.clip(256 * np.exp(-density) - 1, 0, 255).astype(np.uint8)


def _jitter_light(
    pixels: NDArray[np.uint8], rng: np.random.Generator, strength: float
) -> NDArray[np.uint8]:
    """Change brightness, contrast, gamma and the gain of each channel; air, low sun and haze."""
    scaled = pixels.astype(np.float32) / 255 + _AIR * float(strength * rng.uniform(-1.0, 0.5))
    scaled = scaled.clip(0) * float(np.exp(strength * rng.uniform(-0.7, 0.3)))
    scaled = scaled ** float(np.exp(strength * rng.uniform(-0.3, 0.3)))
    center = scaled.mean()
    scaled = (scaled - center) * float(np.exp(strength * rng.uniform(-0.3, 0.3))) + center
    gain = np.exp(strength * rng.uniform(-0.12, 0.12, 3)).astype(np.float32)
    scaled = scaled * gain + float(strength * rng.uniform(-0.08, 0.08))
    haze = strength * max(0.0, rng.uniform(-0.3, 0.3))
    air = (rng.uniform(0.4, 0.9) * np.array([0.95, 0.98, 1.0])).astype(np.float32)
    scaled = (1 - haze) * scaled + haze * air
    return np.clip(255 * scaled, 0, 255).astype(np.uint8)

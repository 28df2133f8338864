"""Tissue against glass in a small picture of a slide, by optical density and color."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]
    Picture = NDArray[np.float32]
    Source = NDArray[np.uint8] | Picture

# Optical densities are natural logarithms of glass over pixel, taken on 8-bit pictures.
# Glass never differs by more than the floor: shading, dust, compression (measured on empty
# tiles: at most 0.03). The palest tissue (debris, mucus, pale stroma) lies above the ceiling.
_STAIN_FLOOR, _STAIN_CEILING = 0.045, 0.08
_NEUTRAL_DENSITY = 0.5
_GRAY_WHITENESS, _TINTED_WHITENESS, _FLAT = 158.0, 150.0, 0.7
_DEFAULT_GLASS = 243.0
_MIN_TISSUE_UM2, _MAX_HOLE_UM2 = 5_000.0, 5_000.0
_INK_WIDTH_UM = 100.0
_JOIN_UM, _MAX_FAT_UM2 = 20.0, 40_000.0
_BORDER_UM = 40.0
_COUNTED_PIXELS = 1_000_000
_SMOOTH, _REACH = 0.7, 3  # of the Gaussian, in pixels; beyond four sigmas it is cut
_STRIP_ROWS = 256


def segment_tissue(
    pixels: NDArray[Any], *, cell_um: float, valid: Mask, keep_fat: bool = False
) -> tuple[Mask, str]:
    """Tell tissue from glass, pen marks and black borders, and name the method.

    `pixels` are `(rows, cols, channels)`; `valid`, `(rows, cols)`, is where there is a picture.
    """
    picture = _as_8_bit(np.moveaxis(pixels, -1, 0))
    if not valid.any():
        return np.zeros(valid.shape, bool), "brightfield"
    every = _thinning(valid)
    if _is_dark(picture[:, ::every, ::every].astype(np.float32), valid[::every, ::every]):
        lit = _close(_find_lit(picture, valid, cell_um), cell_um)
        return _clean(lit, valid, cell_um), "fluorescence"
    rgb = picture[:3] if len(picture) >= 3 else picture[:1].repeat(3, axis=0)
    tissue, ink, absorbed = _find_stained(rgb, valid, cell_um)
    del picture, rgb
    tissue = _close(tissue, cell_um)
    if keep_fat:
        tissue = _fill_holes(tissue, _MAX_FAT_UM2, cell_um)
    tissue = _clean(tissue, valid & ~ink, cell_um)
    return _trim(tissue, absorbed, valid, cell_um), "brightfield"


# Below, pictures are (channels, rows, cols): reducing over channels is then quick.


def _as_8_bit(pixels: NDArray[Any]) -> Source:
    if pixels.dtype == np.uint8:
        return pixels
    picture = np.nan_to_num(np.ascontiguousarray(pixels, np.float32))
    top = float(np.percentile(picture, 99.9))
    return np.clip(picture * (255 / top), 0, 255) if top > 0 else np.zeros_like(picture)


def _thinning(valid: Mask) -> int:
    """Return the step at which a picture is sampled where only its colors are counted."""
    return max(1, math.isqrt(valid.size // _COUNTED_PIXELS))


def _whiteness(rgb: Picture, weight: float) -> Picture:
    """Brightness less color: what glass has much of and tissue has not."""
    spread = rgb.max(axis=0) - rgb.min(axis=0)
    white: Picture = rgb.mean(axis=0) - weight * spread
    return white


def _is_dark(picture: Picture, valid: Mask) -> bool:
    lit = picture[:, valid & picture.any(axis=0)]  # a border of pure black holds no information
    if lit.size == 0:
        return True
    if len(lit) != 3:  # bright field is recorded in color, so a doubtful gray is fluorescence
        return bool(np.median(lit.max(axis=0)) < 110)
    low, middle = np.percentile(lit.mean(axis=0), (5, 50))
    # Nothing that glows in one color is white; glass is, even beside a wide dark border.
    return bool(low < 20 and middle < 60 and np.mean(_whiteness(lit, 2) > 150) < 0.02)


def _find_lit(picture: Source, valid: Mask, cell_um: float) -> Mask:
    from scipy.ndimage import gaussian_filter
    from skimage.filters import threshold_otsu

    found = np.zeros(valid.shape, bool)
    for channel in picture:
        smooth = gaussian_filter(channel, _JOIN_UM / 2 / cell_um, output=np.float32)
        values = smooth[valid]
        if values.max() <= values.min():
            continue
        # Signal spans orders of magnitude, so the split is sought in its logarithm.
        split = threshold_otsu(np.log1p(values))  # type: ignore[no-untyped-call]
        threshold = float(np.expm1(split))
        lit = values > threshold
        if values[lit].mean() > 4 + 1.5 * values[~lit].mean():
            found |= smooth > threshold
    return found


def _find_stained(rgb: Source, valid: Mask, cell_um: float) -> tuple[Mask, Mask, NDArray[np.uint8]]:
    """Tell what is stained (absorbs one color more than another), ink, and the light absorbed."""
    from skimage.filters import threshold_otsu

    glass = _glass_color(rgb, valid)
    stain = np.empty(valid.shape, np.float32)
    absorbed = np.empty(valid.shape, np.uint8)
    is_dense, is_inked, is_faded = np.empty((3, *valid.shape), bool)
    for row in range(0, len(valid), _STRIP_ROWS):  # what is between takes many times the picture
        rows = slice(row, row + _STRIP_ROWS)
        near = slice(max(0, row - _REACH), row + _STRIP_ROWS + _REACH)
        inner = slice(row - near.start, row - near.start + len(valid[rows]))
        picture, density = rgb[:, rows], _density(rgb[:, near], glass)[:, inner]
        is_dark = picture.max(axis=0) < 70
        is_gray = picture.max(axis=0) - picture.min(axis=0) < 12
        is_gray |= density.max(axis=0) - density.min(axis=0) < 0.45
        is_inked[rows], is_faded[rows] = _inks(density)
        is_inked[rows] |= is_dark & is_gray
        # Glass and dust may be greenish, which no common stain is: green as the palest is no color.
        stain[rows] = density.max(axis=0) - np.minimum(density[0], density[2])
        is_dense[rows] = density.min(axis=0) > _NEUTRAL_DENSITY
        absorbed[rows] = 255 * (1 - np.exp(-density.max(axis=0)))
    ink = _find_ink(is_inked, is_faded, cell_um)
    judged = stain[valid & ~ink]
    if judged.size == 0:
        return np.zeros(valid.shape, bool), ink, absorbed
    judged = judged[:: max(1, judged.size // _COUNTED_PIXELS)]
    threshold = _STAIN_FLOOR  # bounds keep a picture that is all tissue whole, and all glass empty
    if judged.max() > judged.min():
        split = threshold_otsu(judged)  # type: ignore[no-untyped-call]
        threshold = float(np.clip(split, _STAIN_FLOOR, _STAIN_CEILING))
    return ((stain > threshold) | is_dense) & ~ink & valid, ink, absorbed


def _density(rgb: Source, glass: Picture) -> Picture:
    """Return the optical density of a slightly smoothed picture."""
    from scipy.ndimage import gaussian_filter

    density = np.empty(rgb.shape, np.float32)
    for channel, white, smooth in zip(rgb, glass, density, strict=True):
        gaussian_filter(channel, _SMOOTH, output=smooth)
        smooth += 1
        np.divide(white + 1, smooth, out=smooth)
        np.log(smooth, out=smooth)
        np.maximum(smooth, 0, out=smooth)
    return density


def _glass_color(rgb: Source, valid: Mask) -> Picture:
    from scipy.ndimage import gaussian_gradient_magnitude

    # Without color, or tinted (as some scanners show it) but without texture.
    every = _thinning(valid)
    gray = rgb.mean(axis=0, dtype=np.float32)
    slope = gaussian_gradient_magnitude(gray, 1.0, output=gray)[::every, ::every]
    few, valid = rgb[:, ::every, ::every].astype(np.float32), valid[::every, ::every]
    is_glass = _whiteness(few, 4) >= _GRAY_WHITENESS
    is_glass |= (_whiteness(few, 2) >= _TINTED_WHITENESS) & (slope < _FLAT)
    white = few[:, is_glass & valid]
    if white.shape[1] < max(4, 0.002 * np.count_nonzero(valid)):
        return np.full(3, _DEFAULT_GLASS, np.float32)
    brightness = white.mean(axis=0)
    top = float(np.percentile(brightness, 99))
    counts, edges = np.histogram(brightness, bins=13, range=(top - 24, top + 2))
    near = np.abs(brightness - (edges[counts.argmax()] + 1)) <= 3
    color: Picture = np.median(white[:, near], axis=1).astype(np.float32)
    return color


def _inks(density: Picture) -> tuple[Mask, Mask]:
    """Tell hues that only ink has (and green counterstains), and those of a stroke's faded edge."""
    red, green, blue = density
    is_green = (green < 0.5 * red) & (green <= blue) & (red > 0.25)
    is_blue = (red > 0.6) & (blue < 0.25 * red) & (green > 0.4 * red) & (green < 0.85 * red)
    # Blood is red too, but absorbs blue no less than green.
    is_red = (green > 1.2) & (blue > 0.72 * green) & (red < 0.35 * green)
    is_red &= (blue < 0.95 * green) | (red < 0.12 * green)
    # The edge has the hue of the stroke, more weakly. (Pale red is the hue of eosin.)
    is_faded = (red > 0.08) & (green < 0.6 * red) & (green <= 1.1 * blue)
    is_faded |= (red > 0.1) & (blue < 0.2 * red) & (green > 0.4 * red) & (green < 0.85 * red)
    return is_green | is_blue | is_red, is_faded


def _find_ink(is_inked: Mask, is_faded: Mask, cell_um: float) -> Mask:
    """Keep broad strokes, and the edges that belong to them."""
    from scipy.ndimage import binary_propagation

    if not is_inked.any():
        return is_inked
    radius = max(1, round(_INK_WIDTH_UM / 2 / cell_um))
    core = _near(~_near(~np.pad(is_inked, radius), radius), radius)[radius:-radius, radius:-radius]
    return np.asarray(binary_propagation(core, mask=is_inked | is_faded), bool)


def _close(mask: Mask, cell_um: float) -> Mask:
    """Join what is a cell or two apart: between nuclei there is tissue too."""
    radius = round(_JOIN_UM / cell_um)
    if radius == 0:
        return mask
    grown = _near(np.pad(mask, 2 * radius, mode="edge"), radius)
    closed = ~_near(~grown, radius)
    return closed[2 * radius : -2 * radius, 2 * radius : -2 * radius]


def _near(mask: Mask, radius: int) -> Mask:
    """Return the cells up to `radius` cells from a True one; time does not grow with the radius."""
    from scipy.ndimage import distance_transform_edt

    if not mask.any():
        return mask
    away = distance_transform_edt(~mask)
    return np.asarray(away <= radius)


def _fill_holes(mask: Mask, max_um2: float, cell_um: float) -> Mask:
    from scipy.ndimage import binary_fill_holes

    holes = binary_fill_holes(mask) & ~mask
    return np.asarray(mask | (holes & ~_keep_large(holes, _cells(max_um2, cell_um))), bool)


def _clean(mask: Mask, allowed: Mask, cell_um: float) -> Mask:
    smallest = min(_cells(_MIN_TISSUE_UM2, cell_um), int(0.02 * mask.size))
    mask = _keep_large(mask, smallest, diagonal=True)
    return _fill_holes(mask, _MAX_HOLE_UM2, cell_um) & allowed


def _trim(mask: Mask, absorbed: NDArray[np.uint8], valid: Mask, cell_um: float) -> Mask:
    """Take off border cells that tissue covers by less than half: half absorb half the light."""
    from scipy.ndimage import binary_erosion, uniform_filter

    around = np.ones((3, 3), bool)
    inside = binary_erosion(mask, around, iterations=2, border_value=1)
    size = 2 * max(3, round(_BORDER_UM / cell_um)) + 1
    least = uniform_filter(absorbed * inside, size, output=np.float32) / 2
    is_full = absorbed * uniform_filter(inside, size, output=np.float32) >= least
    for _ in range(2):
        mask = mask & (is_full | binary_erosion(mask | ~valid, around, border_value=1))
    return mask


def _keep_large(mask: Mask, max_cells: int, *, diagonal: bool = False) -> Mask:
    """Keep the parts of more than so many cells (scikit-image takes 8 bytes more a cell)."""
    from scipy.ndimage import generate_binary_structure, label

    parts = np.empty(mask.shape, np.int32)
    n = label(mask, generate_binary_structure(2, 2 if diagonal else 1), output=parts)
    sizes = np.zeros(n + 1, np.int64)
    for row in range(0, len(parts), 64):  # bincount makes a copy of 64-bit numbers
        sizes += np.bincount(parts[row : row + 64].ravel(), minlength=n + 1)
    is_large = sizes > max_cells
    is_large[0] = False
    return np.asarray(is_large[parts], bool)


def _cells(area_um2: float, cell_um: float) -> int:
    return int(area_um2 / cell_um**2)

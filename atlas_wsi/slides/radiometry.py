"""What stored samples mean: colors or reflectance, and the values of black and white.

Nothing here looks at pixels, so that the same ground gives the same input of a model whichever
file it is cut from.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from atlas_wsi.slides.backend import SlideMeta

WHITE_REFLECTANCE = 0.3558
"""Reflectance that is white in 8-bit true color, as in Sentinel-2's TCI of level 1C."""

_FACTS_BYTES = 2**20
_IMAGES = (".tif", ".tiff", ".jp2")
_SENTINEL2 = re.compile(r"S2[A-D]_MSI(L1C|L2A)_\d{8}T\d{6}_N(\d{2})(\d{2})_")
_SENTINEL2_BAND = re.compile(r"(^|_)B(0[1-9]|1[0-2]|8A)(_[126]0m)?\.(jp2|tiff?)$", re.IGNORECASE)
_SENTINEL2_FACTS = ("MTD_MSIL1C.xml", "MTD_MSIL2A.xml")
_LANDSAT_SURFACE = re.compile(
    r"L[COTEM]0\d_L2S[PR]_\d{6}_\d{8}_\d{8}_02_\w\w_SR_B\d", re.IGNORECASE
)
_LANDSAT_TOP = re.compile(r"(L[COTEM]0\d_L1\w\w_\d{6}_\d{8}_\d{8}_02_\w\w)_B(\d+)\.", re.IGNORECASE)
_HLS = re.compile(r"HLS\.[LS]30\.T\w{5}\.\d{7}T\d{6}\.v\d+\.\d+\.B\w\w\.", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """The stored values between which the samples of each channel lie."""

    low: tuple[float, ...]
    """Stored value of black, or of reflectance 0, one per channel."""
    high: tuple[float, ...]
    """Stored value of white, or of reflectance 1, one per channel."""
    unit: Literal["color", "reflectance"]
    """What lies between `low` and `high`."""
    source: str
    """Where this is known from, such as ``"8-bit"`` or ``"scale and offset tags"``."""

    def describe(self) -> str:
        """Say what becomes black and white, or reflectance 0 and 1, and how that is known."""
        low, high = (
            f"{min(v):g}" if min(v) == max(v) else f"{min(v):g} to {max(v):g}"
            for v in (self.low, self.high)
        )
        ends = "black and white" if self.unit == "color" else "reflectance 0 and 1"
        return f"{low} and {high} are {ends} ({self.source})"

    def color_range(self, channels: Sequence[int], white: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the stored values that become 0 and 255, float32 `(channels,)` each.

        `white`: reflectance that becomes 255.
        """
        low = np.array([self.low[c] for c in channels], np.float64)
        high = np.array([self.high[c] for c in channels], np.float64)
        if self.unit == "reflectance":
            high = low + (high - low) * white
        return low.astype(np.float32), high.astype(np.float32)


def rgb_channels(meta: SlideMeta) -> tuple[tuple[int, int, int], str]:
    """Return the channels that stand for red, green and blue, and what is to be said of it."""
    stated = [name.lower() for name in meta.properties.get("colorinterp", "").split(",")]
    for names in (stated, [name.lower() for name in meta.channel_names]):
        if all(color in names for color in ("red", "green", "blue")):
            return (names.index("red"), names.index("green"), names.index("blue")), ""
    if meta.n_channels < 3:
        return (0, 0, 0), "One channel stands for red, green and blue; the model was made for RGB."
    first = ", ".join(meta.channel_names[:3])
    return (0, 1, 2), (
        f"Of {meta.n_channels} channels the first three ({first}) are taken as red, green and blue."
    )


def full_range(dtype: np.dtype[np.generic], n_channels: int, *, bits: int | None = None) -> Samples:
    """Return the meaning of colors that use all of their bits."""
    bits = bits or 8 * dtype.itemsize
    return Samples(
        low=(0.0,) * n_channels,
        high=(2.0**bits - 1,) * n_channels,
        unit="color",
        source=f"{bits}-bit",
    )


def stated_range(low: float, high: float, n_channels: int) -> Samples:
    """Return the meaning of samples whose black and white the user states."""
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"the scale is {low:g},{high:g}; expected two numbers, the lower first")
    return Samples(
        low=(low,) * n_channels, high=(high,) * n_channels, unit="color", source="argument"
    )


def from_tags(scales: Sequence[float], offsets: Sequence[float]) -> Samples | None:
    """Read the scale and offset of each band as reflectance; None if they say nothing."""
    said = any(scale != 1.0 for scale in scales) or any(offsets)
    if not said or not all(math.isfinite(s) and s > 0 for s in scales):
        return None
    return _reflectance(scales, offsets, "scale and offset tags")


def from_product(files: Sequence[str], tags: Mapping[str, str], n_channels: int) -> Samples | None:
    """Recognize bands of Sentinel-2, Landsat Collection 2 and HLS; None for other files.

    `files`: The raster and, for a mosaic, what it is made of. `tags`: Its metadata.
    """
    bands = [_product_of(file, tags) for file in files if file.lower().endswith(_IMAGES)]
    if not bands or None in bands:
        return None
    known = [band for band in bands if band is not None]
    if len(set(known)) == 1:
        known = known[:1] * n_channels
    if len(known) != n_channels or len({name for name, _, _ in known}) != 1:
        return None
    return _reflectance([s for _, s, _ in known], [o for _, _, o in known], known[0][0])


def _reflectance(scales: Sequence[float], offsets: Sequence[float], source: str) -> Samples:
    pairs = list(zip(scales, offsets, strict=True))
    return Samples(
        low=tuple(-offset / scale for scale, offset in pairs),
        high=tuple((1.0 - offset) / scale for scale, offset in pairs),
        unit="reflectance",
        source=source,
    )


def _product_of(file: str, tags: Mapping[str, str]) -> tuple[str, float, float] | None:
    """Return name, scale and offset of the product that a band belongs to."""
    name = file.replace("\\", "/").rsplit("/", 1)[-1]
    if _LANDSAT_SURFACE.match(name):
        return "Landsat Collection 2 surface reflectance", 2.75e-5, -0.2
    if _HLS.match(name):
        return "HLS", 1e-4, 0.0
    top = _LANDSAT_TOP.match(name)
    if top:
        return _landsat_top(Path(file).with_name(f"{top[1]}_MTL.txt"), top[2])
    if _SENTINEL2_BAND.search(name):
        return _sentinel2(file, tags)
    return None


def _landsat_top(facts: Path, band: str) -> tuple[str, float, float] | None:
    text = _text_of(facts)
    values = [
        re.search(rf"\b{key} = (-?\d\S*)", text)
        for key in (
            f"REFLECTANCE_MULT_BAND_{band}",
            f"REFLECTANCE_ADD_BAND_{band}",
            "SUN_ELEVATION",
        )
    ]
    try:
        scale, offset, sun = (float(value[1]) for value in values if value)
    except ValueError:
        return None
    height = math.sin(math.radians(sun))
    if not (0.0 < scale < 1.0 and height > 0.0):
        return None
    return "Landsat Collection 2 level 1", scale / height, offset / height


def _sentinel2(file: str, tags: Mapping[str, str]) -> tuple[str, float, float] | None:
    """Since processing baseline 04.00 all bands have 1000 added."""
    named = _SENTINEL2.search(file.replace("\\", "/"))
    if named:
        level, baseline = named[1], (int(named[2]), int(named[3]))
    else:
        texts = [" ".join(f"<{k}>{v}<" for k, v in tags.items()), *_sentinel2_facts(file)]
        stated = (re.search(r"PROCESSING_BASELINE>(\d\d)\.(\d\d)<", text) for text in texts)
        match = next((m for m in stated if m), None)
        if match is None:
            return None
        baseline = int(match[1]), int(match[2])
        level = "L2A" if any("S2MSI2A" in text for text in texts) else "L1C"
    offset = -0.1 if baseline >= (4, 0) else 0.0
    return f"Sentinel-2 {level}, baseline {baseline[0]:02}.{baseline[1]:02}", 1e-4, offset


def _sentinel2_facts(file: str) -> Iterator[str]:
    for folder in list(Path(file).parents)[:5]:
        for name in _SENTINEL2_FACTS:
            text = _text_of(folder / name)
            if text:
                yield text


def _text_of(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(_FACTS_BYTES)
    except OSError:
        return ""

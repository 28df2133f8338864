"""How large a pixel is: where files say so, what is believed, what the user may override."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

PLAUSIBLE_UM = (0.02, 100.0)
_PRINTED_UM = 2.6
"""Pixels of this size and larger are those of printers, cameras and flatbed scanners: 9600 dpi."""
_UM_PER_UNIT = {"inch": 25_400.0, "centimeter": 10_000.0}


def check_mpp(mpp: float | tuple[float, float]) -> tuple[float, float]:
    """Return a caller's micrometers per pixel as `(y, x)`."""
    y, x = (mpp, mpp) if isinstance(mpp, (int, float)) else mpp
    if not all(math.isfinite(value) and value > 0 for value in (y, x)):
        raise ValueError(f"mpp must be finite and positive, got {mpp!r}.")
    return float(y), float(x)


_METERS = {"": 1.0, "mm": 1e-3, "cm": 1e-2, "m": 1.0, "km": 1e3}


def parse_gsd(text: str) -> float:
    """Read a ground sampling distance as micrometers per pixel.

    Parameters
    ----------
    text
        Such as ``"10m"``, ``"30cm"`` or ``"1km"``; a bare number is in meters.

    Returns
    -------
    float
        Micrometers per pixel.

    Raises
    ------
    ValueError
        If it is not a positive length.
    """
    match = re.fullmatch(r"\s*(\d+\.?\d*(?:e[+-]?\d+)?|\.\d+)\s*(|mm|cm|m|km)\s*", text)
    size = float(match[1]) * _METERS[match[2]] * 1e6 if match else 0.0
    if not 0 < size < math.inf:
        raise ValueError(f"'{text}' is not a ground sampling distance such as 10m, 30cm or 1km")
    return size


def from_openslide(properties: Mapping[str, str]) -> tuple[tuple[float, float] | None, str]:
    """Return micrometers per pixel `(y, x)` and the property of OpenSlide that says so."""
    y = _positive(properties.get("openslide.mpp-y"))
    x = _positive(properties.get("openslide.mpp-x"))
    if y is None or x is None:
        y = x = y or x
    if y is None or x is None:
        return None, ""
    return (y, x), "openslide.mpp-x"


def from_aperio(
    description: str,
) -> tuple[tuple[tuple[float, float] | None, str], float | None]:
    """Return an Aperio slide's micrometers per pixel `(y, x)` with their place, and the power."""
    parts = (part.partition("=") for part in description.split("|")[1:])
    facts = {key.strip(): value.strip() for key, _, value in parts}
    mpp = _positive(facts.get("MPP"))
    resolution = ((mpp, mpp), "aperio.MPP") if mpp is not None else (None, "")
    return resolution, _positive(facts.get("AppMag"))


def from_tiff(
    per_unit_y: float, per_unit_x: float, unit: str
) -> tuple[tuple[float, float] | None, str]:
    """Return micrometers per pixel `(y, x)` and their place, unless editors write such by habit."""
    scale = _UM_PER_UNIT.get(unit.lower())
    if scale is None or not (per_unit_y > 0 and per_unit_x > 0):
        return None, ""
    mpp = scale / per_unit_y, scale / per_unit_x
    if not all(PLAUSIBLE_UM[0] <= value < _PRINTED_UM for value in mpp):
        return None, ""
    return mpp, "TIFF resolution"


def contradictions(mpp: tuple[float, float] | None, magnification: float) -> tuple[str, ...]:
    """Compare micrometers per pixel `(y, x)` with the magnification that a file states."""
    if mpp is None or not magnification or 5.0 < magnification * max(mpp) < 20.0:
        return ()
    return (f"the file says {magnification:g}x and {max(mpp):.3g} µm/px, which do not go together",)


def explain_missing(name: str, magnification: float | None) -> tuple[str, str]:
    """Return message and hint of the error for a slide of unknown pixel size."""
    clue = ""
    if magnification:
        clue = (
            f" The file says {magnification:g}x, which on many scanners means about "
            f"{10 / magnification:.3g} µm."
        )
    message = f"{name} does not say how large a pixel is.{clue}"
    hint = (
        "Give micrometers per pixel: --mpp 0.25, or --gsd 10m for a scene "
        "(in Python: open_slide(path, mpp=0.25))."
    )
    return message, hint


def _positive(text: str | None) -> float | None:
    try:
        value = float(text) if text else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None

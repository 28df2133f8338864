"""How large a pixel is: where files say so, what is believed, what the user may override."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

PLAUSIBLE_UM = (0.02, 100.0)
_EDITOR_DPI = (72.0, 96.0, 150.0, 200.0, 300.0, 600.0, 1200.0)
_UM_PER_UNIT = {"inch": 25_400.0, "centimeter": 10_000.0}


def check_mpp(mpp: float | tuple[float, float]) -> tuple[float, float]:
    """Return a resolution given by a caller as `(y, x)`.

    `mpp`: Micrometers per pixel, one number or `(y, x)`. Returns: `(y, x)`.
    """
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
    """Return the resolution among OpenSlide's properties.

    Returns: Micrometers per pixel `(y, x)` or None, and the property it was read from.
    """
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
    """Return the resolution and the objective's power in an Aperio slide's description.

    Returns: Micrometers per pixel `(y, x)` or None with the place it was read from; and the power.
    """
    parts = (part.partition("=") for part in description.split("|")[1:])
    facts = {key.strip(): value.strip() for key, _, value in parts}
    mpp = _positive(facts.get("MPP"))
    resolution = ((mpp, mpp), "aperio.MPP") if mpp is not None else (None, "")
    return resolution, _positive(facts.get("AppMag"))


def from_tiff(
    per_unit_y: float, per_unit_x: float, unit: str
) -> tuple[tuple[float, float] | None, str]:
    """Return the resolution that TIFF's resolution tags mean, if they mean one.

    Returns: Micrometers per pixel `(y, x)` and where they were read. None for what image editors
    write by habit (72, 96, 300 dpi) and for anything that no microscope has.
    """
    scale = _UM_PER_UNIT.get(unit.lower())
    if scale is None or not (per_unit_y > 0 and per_unit_x > 0):
        return None, ""
    dpi = per_unit_x * _UM_PER_UNIT["inch"] / scale
    mpp = scale / per_unit_y, scale / per_unit_x
    low, high = PLAUSIBLE_UM
    if any(abs(dpi - habit) < 0.5 for habit in _EDITOR_DPI):
        return None, ""
    if not all(low <= value <= high for value in mpp):
        return None, ""
    return mpp, "TIFF resolution"


def contradictions(mpp: tuple[float, float] | None, magnification: float) -> tuple[str, ...]:
    """Compare the two statements that a file makes about its resolution.

    `mpp`: Micrometers per pixel `(y, x)`, if stated.
    """
    if mpp is None or not magnification or 5.0 <= magnification * max(mpp) <= 20.0:
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

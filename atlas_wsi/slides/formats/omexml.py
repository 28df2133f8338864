"""The few facts of OME-XML that a slide needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tifffile

_UM_PER_UNIT = {
    "pm": 1e-6,
    "Å": 1e-4,
    "nm": 1e-3,
    "µm": 1.0,
    "μm": 1.0,  # the Greek letter, not the micro sign
    "um": 1.0,
    "mm": 1e3,
    "cm": 1e4,
    "m": 1e6,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OmeImage:
    """What OME-XML says of one image."""

    mpp: tuple[float, float] | None = None
    """Micrometers per pixel `(y, x)`."""
    channel_names: tuple[str, ...] = ()
    """One name per channel, where all have one."""
    magnification: float | None = None
    """Nominal magnification of the objective."""
    vendor: str = ""
    """Manufacturer of the microscope."""


def read_image(xml: str | None, index: int) -> OmeImage:
    """Read what OME-XML says of an image.

    Notes
    -----
    Source: OME model 2016-06; lengths are in micrometers unless a unit is given.
    """
    root = tifffile.xml2dict(xml or "<OME/>").get("OME") or {}
    images = _many(root.get("Image"))
    if index >= len(images):
        return OmeImage()
    pixels = images[index].get("Pixels", {})
    y, x = (_length_um(pixels, f"PhysicalSize{axis}") for axis in "YX")
    y, x = y or x, x or y
    names = [str(c.get("Name", "")) for c in _many(pixels.get("Channel"))]
    instruments = _many(root.get("Instrument"))
    objectives = [o for i in instruments for o in _many(i.get("Objective"))]
    wanted = images[index].get("ObjectiveSettings", {}).get("ID")
    powers = [o.get("NominalMagnification") for o in objectives if o.get("ID") == wanted]
    makers = [m.get("Manufacturer") for i in instruments for m in _many(i.get("Microscope"))]
    return OmeImage(
        mpp=(y, x) if y and x else None,
        channel_names=tuple(names) if all(names) else (),
        magnification=float(powers[0]) if powers and powers[0] else None,
        vendor=str(makers[0]) if makers and makers[0] else "",
    )


def _many(value: Any) -> list[dict[str, Any]]:
    found = value if isinstance(value, list | tuple) else [value]
    return [item for item in found if isinstance(item, dict)]


def _length_um(pixels: dict[str, Any], name: str) -> float | None:
    scale = _UM_PER_UNIT.get(pixels.get(f"{name}Unit", "µm"))
    value = pixels.get(name)
    if scale is None or not isinstance(value, int | float) or not value > 0:
        return None
    return float(value) * scale

"""The few facts of OME-XML that a slide needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
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
    significant_bits: int | None = None
    """Bits of a sample that are used."""
    vendor: str = ""
    """Manufacturer of the microscope."""


def read_image(xml: str | None, index: int) -> OmeImage:
    """Read an image of OME model 2016-06; lengths without a unit are in micrometers."""
    root = tifffile.xml2dict(xml or "<OME/>").get("OME") or {}
    images = _many(root.get("Image"))
    if index >= len(images):
        return OmeImage()
    pixels = images[index].get("Pixels", {})
    y, x = (_length_um(pixels, f"PhysicalSize{axis}") for axis in "YX")
    y, x = y or x, x or y
    bits = pixels.get("SignificantBits")
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
        significant_bits=bits if isinstance(bits, int) and 1 <= bits <= 16 else None,
        vendor=str(makers[0]) if makers and makers[0] else "",
    )


def image_index(xml: str | None, series: tifffile.TiffPageSeries, number: int) -> int:
    """Return the place in OME-XML of the image that a series is.

    The series of a set of files whose other files are missing are fewer than its images: then the
    file and page that `TiffData` names decide. `number`: place of the series among the series.
    """
    root = tifffile.xml2dict(xml or "<OME/>").get("OME") or {}
    page = series.keyframe
    name, wanted = Path(str(page.parent.filename)).name, int(page.index)
    for index, image in enumerate(_many(root.get("Image"))):
        for part in _many(image.get("Pixels", {}).get("TiffData")):
            uuid = part.get("UUID")
            file = uuid.get("FileName") if isinstance(uuid, dict) else None
            if file == name and int(part.get("IFD", 0)) == wanted:
                return index
    return number


def _many(value: Any) -> list[dict[str, Any]]:
    found = value if isinstance(value, list | tuple) else [value]
    return [item for item in found if isinstance(item, dict)]


def _length_um(pixels: dict[str, Any], name: str) -> float | None:
    scale = _UM_PER_UNIT.get(pixels.get(f"{name}Unit", "µm"))
    value = pixels.get(name)
    if scale is None or not isinstance(value, int | float) or not value > 0:
        return None
    return float(value) * scale

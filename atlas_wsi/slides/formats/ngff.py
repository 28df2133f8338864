"""What OME-Zarr metadata says; it comes from outside, so everything is bounded and checked."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, Field, StringConstraints, ValidationError

from atlas_wsi.errors import UnreadableSlideError, UnsupportedFormatError

if TYPE_CHECKING:
    from collections.abc import Mapping

_VERSIONS = ("0.4", "0.5")
_UM_PER_UNIT = {
    "angstrom": 1e-4,
    "attometer": 1e-12,
    "centimeter": 1e4,
    "decimeter": 1e5,
    "femtometer": 1e-9,
    "foot": 304_800.0,
    "hectometer": 1e8,
    "inch": 25_400.0,
    "kilometer": 1e9,
    "megameter": 1e12,
    "meter": 1e6,
    "micrometer": 1.0,
    "mile": 1_609_344_000.0,
    "millimeter": 1e3,
    "nanometer": 1e-3,
    "picometer": 1e-6,
    "yard": 914_400.0,
}
_RGB = ("ff0000", "00ff00", "0000ff")
_RGB_NAMES = ("red", "green", "blue")
_RGB_LETTERS = ("r", "g", "b")
_Model = TypeVar("_Model", bound=BaseModel)


def _inside(path: str) -> str:
    """Refuse a path that may leave the store."""
    parts = path.split("/")
    if path.startswith("/") or "\\" in path or ":" in path or not {"", ".", ".."}.isdisjoint(parts):
        raise ValueError(f"{path!r} is no path inside the store")
    return path


_Text = Annotated[str, StringConstraints(max_length=1024)]
_Path = Annotated[str, StringConstraints(min_length=1, max_length=1024), AfterValidator(_inside)]
_Numbers = Annotated[list[float], Field(max_length=8)]


class _Axis(BaseModel):
    name: _Text
    type: _Text | None = None
    unit: _Text | None = None

    @property
    def role(self) -> str:
        """One of t, c, z, y, x; another axis as it is named."""
        by_type = {"time": "t", "channel": "c"}
        return by_type.get(self.type or "", self.name.lower())


class _Transformation(BaseModel):
    type: _Text
    scale: _Numbers | None = None


class _Dataset(BaseModel):
    path: _Path
    transformations: Annotated[
        list[_Transformation], Field(max_length=8, alias="coordinateTransformations")
    ] = []


class _Multiscale(BaseModel):
    name: _Text | None = None
    axes: Annotated[list[_Axis], Field(min_length=2, max_length=8)]
    datasets: Annotated[list[_Dataset], Field(min_length=1, max_length=64)]
    transformations: Annotated[
        list[_Transformation], Field(max_length=8, alias="coordinateTransformations")
    ] = []


class _Channel(BaseModel):
    label: _Text | None = None
    color: _Text | None = None


class _Omero(BaseModel):
    channels: Annotated[list[_Channel], Field(max_length=4096)]


class _Entry(BaseModel):
    path: _Path


class _Plate(BaseModel):
    wells: Annotated[list[_Entry], Field(min_length=1)]


class _Well(BaseModel):
    images: Annotated[list[_Entry], Field(min_length=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class NgffImage:
    """One multiscale image as its metadata describes it."""

    name: str
    """What the file calls it; may be empty."""
    version: str
    """Version of OME-Zarr."""
    axes: tuple[str, ...]
    """Roles of the arrays' axes: ``"t"``, ``"c"``, ``"z"``, ``"y"``, ``"x"`` or another name."""
    paths: tuple[str, ...]
    """Paths of the levels' arrays in the group, finest first."""
    mpp: tuple[float, float] | None
    """Micrometers per level-0 pixel `(y, x)`."""
    labels: tuple[str, ...]
    """Names of the channels; empty where nothing is said."""
    colors: tuple[str, ...]
    """Six hexadecimal digits per channel, lower case; empty where nothing is said."""
    warnings: tuple[str, ...]
    """What the user may want to act on."""

    def is_rgb(self, n_channels: int, dtype: str) -> bool:
        """Tell whether the channels are the colors of one photograph."""
        if n_channels != 3:
            return False
        labels = tuple(label.lower() for label in self.labels)
        if labels in {_RGB_NAMES, _RGB_LETTERS}:
            return True
        # red, green and blue are also what viewers give three channels of fluorescence
        is_named = any(not re.fullmatch(r"(channel|c|ch)?[ :_]*\d*", label) for label in labels)
        if is_named:
            return False
        return self.colors == _RGB if self.colors else dtype == "uint8"

    def channel_names(self, n_channels: int, dtype: str) -> tuple[str, ...]:
        """Return one name per channel."""
        if self.is_rgb(n_channels, dtype):
            return _RGB_NAMES
        if len(self.labels) == n_channels:
            return tuple(label or f"channel {i}" for i, label in enumerate(self.labels))
        return tuple(f"channel {number}" for number in range(n_channels))


def ome_attributes(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a group's attributes that OME-Zarr defines."""
    inner = attributes.get("ome")
    return inner if isinstance(inner, dict) else attributes


def parse_images(attributes: Mapping[str, Any], where: str) -> list[NgffImage]:
    """Read "multiscales" and "omero" of OME-NGFF 0.4 and 0.5, with axes in any order."""
    ome = ome_attributes(attributes)
    images = ome.get("multiscales")
    if not isinstance(images, list) or not images:
        _refuse_others(ome, where)
        raise UnsupportedFormatError(f"{where} is a zarr group without an OME-Zarr image.")
    labels, colors = _channels(ome.get("omero"))
    return [
        _parse_image(ome, image, f"{where}: multiscales[{n}]", labels, colors)
        for n, image in enumerate(images[:64])
    ]


def _parse_image(
    ome: Mapping[str, Any],
    stored: Any,
    where: str,
    labels: tuple[str, ...],
    colors: tuple[str, ...],
) -> NgffImage:
    version = _version(ome, stored)
    if version not in _VERSIONS:
        raise UnsupportedFormatError(
            f"{where} is OME-Zarr {version}; {' and '.join(_VERSIONS)} are read.",
            hint="Write it again with a current converter, such as bioformats2raw or ome-zarr-py.",
        )
    image = _parse(_Multiscale, stored, where)
    roles = tuple(axis.role for axis in image.axes)
    if "y" not in roles or "x" not in roles or len(set(roles)) < len(roles):
        raise UnreadableSlideError(f"{where} has axes {roles}: y and x are needed once each.")
    notes: list[str] = []
    return NgffImage(
        name=image.name or "",
        version=version,
        axes=roles,
        paths=tuple(dataset.path for dataset in image.datasets),
        mpp=_mpp(image, roles, notes),
        labels=labels,
        colors=colors,
        warnings=tuple(notes),
    )


def _refuse_others(ome: Mapping[str, Any], where: str) -> None:
    """Raise for what OME-Zarr holds besides images, and say where the images are."""
    if "plate" in ome:
        wells = _parse(_Plate, ome["plate"], f"{where}: plate").wells
        raise UnsupportedFormatError(
            f"{where} is a plate of {len(wells)} wells, not one image.",
            hint=f"Open a field of it: {where.rstrip('/')}/{wells[0].path}/0.",
        )
    if "well" in ome:
        fields = _parse(_Well, ome["well"], f"{where}: well").images
        raise UnsupportedFormatError(
            f"{where} is a well of {len(fields)} fields, not one image.",
            hint=f"Open a field of it: {where.rstrip('/')}/{fields[0].path}.",
        )


def _parse(model: type[_Model], value: Any, where: str) -> _Model:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UnreadableSlideError(
            f"{where} contradicts OME-Zarr: {place}: {first['msg']}."
        ) from error


def _version(ome: Mapping[str, Any], image: Any) -> str:
    stated = ome.get("version")
    if stated is None and isinstance(image, dict):
        stated = image.get("version")
    if stated is not None:
        return str(stated)[:32]
    # The version may be left out in 0.4; older ones know axes as letters, or not at all.
    axes = image.get("axes") if isinstance(image, dict) else None
    is_described = isinstance(axes, list) and all(isinstance(axis, dict) for axis in axes)
    return "0.4" if is_described else "0.3 or older"


def _channels(omero: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Labels and colors; neither if the (optional, transitional) metadata is odd."""
    try:
        channels = _Omero.model_validate(omero).channels
    except ValidationError:
        return (), ()
    labels = tuple(channel.label or "" for channel in channels)
    colors = tuple((channel.color or "").lower() for channel in channels)
    return labels if any(labels) else (), colors if any(colors) else ()


def _mpp(
    image: _Multiscale, roles: tuple[str, ...], notes: list[str]
) -> tuple[float, float] | None:
    values = []
    for role in ("y", "x"):
        axis = roles.index(role)
        scale = 1.0
        steps = [*image.datasets[0].transformations, *image.transformations]
        factors = [step.scale for step in steps if step.type == "scale"]
        for factor in factors:
            if factor is None or len(factor) != len(roles):
                notes.append("A scale of the file does not fit its axes; it is ignored.")
                return None
            scale *= factor[axis]
        unit = image.axes[axis].unit
        if not factors or unit is None:
            return None
        if unit not in _UM_PER_UNIT:
            notes.append(f"{unit!r} is no unit of length that is known; the scale is ignored.")
            return None
        values.append(scale * _UM_PER_UNIT[unit])
    if not all(math.isfinite(value) and value > 0 for value in values):
        notes.append(f"The file gives {values} micrometers per pixel, which is implausible.")
        return None
    return values[0], values[1]

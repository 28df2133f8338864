"""What is in HDF5, Zarr and safetensors files."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from atlas_wsi.errors import CorruptResultError
from atlas_wsi.heatmap.summary import HeatmapRecord
from atlas_wsi.interop.found import MAX_PARTS, Inspection, Part, plain
from atlas_wsi.tissue.tiles import layout_of, open_hdf5

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_MAX_ATTRIBUTE_BYTES = 64 * 1024
_MAX_DEPTH = 5
_MAX_METADATA_BYTES = 32 * 2**20
_TISSUE = "atlas-wsi predict SLIDE -o OUT --tissue FILE"


def inspect_hdf5(path: Path) -> Inspection:
    """Tell what an HDF5 file is: tiles and features of CLAM, TRIDENT, WSInfer, STAMP and ours."""
    parts: list[Part] = []

    def visit(name: str, found: Any) -> bool | None:
        if getattr(found, "shape", None) is not None:
            parts.append(
                Part(
                    name=plain(name),
                    shape=found.shape,
                    dtype=str(found.dtype),
                    attributes=_attributes(found),
                )
            )
        return True if len(parts) >= MAX_PARTS else None  # anything but None ends the walk

    with open_hdf5(path) as file:
        file.visititems(visit)
        about = _attributes(file)
        layout = layout_of(file)
    arrays = {part.name: part for part in parts}
    values = arrays.get("features") or arrays.get("feats")
    said = {**about, **(values.attributes if values else {})}
    if layout and "coords" in arrays:
        return _tiles(layout, arrays["coords"], values, said, tuple(parts))
    if values:
        facts = {"features": list(values.shape), **said}
        return Inspection(kind="features without places", facts=facts, parts=tuple(parts))
    return Inspection(kind="HDF5 file", facts=about, parts=tuple(parts))


def _tiles(
    layout: str,
    coords: Part,
    values: Part | None,
    said: dict[str, Any],
    parts: tuple[Part, ...],
) -> Inspection:
    facts: dict[str, Any] = {"layout": layout, "tiles": coords.shape[0] if coords.shape else 0}
    kind = "places of tiles"
    uses, warnings = [], []
    if layout != "CLAM" or "patch_size" in coords.attributes:
        uses.append(_TISSUE)
    if values is not None:
        kind = "features of tiles"
        facts["features_per_tile"] = values.shape[-1] if values.shape else 0
        if said.get("atlas_features") == "class probabilities":
            kind = "class probabilities of tiles"
            facts["classes"] = str(said.get("atlas_classes", "")).split("\n")
        uses.append(f"programs that learn from slide labels and read files of {layout}")
        if values.shape[:1] != coords.shape[:1]:
            warnings.append(f"{values.name} and coords have different lengths.")
    facts |= {k: v for k, v in said.items() if v != "" and k != "atlas_classes"}
    return Inspection(
        kind=kind,
        writer="atlas-wsi" if "atlas_model_sha256" in said else layout,
        facts=facts,
        parts=parts,
        uses=tuple(uses),
        warnings=tuple(warnings),
    )


def _attributes(found: Any) -> dict[str, Any]:
    """Read the attributes of an object that are small."""
    attributes: dict[str, Any] = {}
    for name in list(found.attrs)[:MAX_PARTS]:
        handle = found.attrs.get_id(name)
        size = math.prod(handle.shape or ()) * handle.dtype.itemsize
        small = size <= _MAX_ATTRIBUTE_BYTES
        value = found.attrs[name] if small else f"{handle.dtype} {handle.shape}"
        attributes[plain(name)] = plain(value)
    return attributes


def inspect_zarr(path: Path) -> Inspection:
    """Tell what a Zarr store is: OME-Zarr, ours, SpatialData, TIAToolbox."""
    import zarr

    for name in ("zarr.json", ".zattrs", ".zmetadata"):
        if (path / name).is_file() and (path / name).stat().st_size > _MAX_METADATA_BYTES:
            raise CorruptResultError(f"{path / name} is larger than 32 MiB.")
    try:
        root = zarr.open(str(path), mode="r")
        if isinstance(root, zarr.Array):
            return Inspection(kind="Zarr array", parts=(_array("/", root),), facts=_about(root))
        parts = []
        for name, array in _walk(root, "", _MAX_DEPTH):
            parts.append(_array(name, array))
            if len(parts) == MAX_PARTS:
                break
        attributes = dict(root.attrs)
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, RecursionError) as error:
        raise CorruptResultError(f"{path} is not Zarr that can be read: {error}") from error
    return _group(path, attributes, tuple(parts), {"zarr_format": root.metadata.zarr_format})


def _walk(group: Any, above: str, depth: int) -> Iterator[tuple[str, Any]]:
    for name, array in group.arrays():
        yield f"{above}{name}", array
    if depth:
        for name, below in group.groups():
            yield from _walk(below, f"{above}{name}/", depth - 1)


def _array(name: str, array: Any) -> Part:
    facts = {"chunks": list(array.chunks), **_about(array)}
    return Part(name=plain(name), shape=array.shape, dtype=str(array.dtype), attributes=facts)


def _about(found: Any) -> dict[str, Any]:
    return {str(plain(k)): plain(v) for k, v in dict(found.attrs).items()}


def _group(
    path: Path, attributes: dict[str, Any], parts: tuple[Part, ...], facts: dict[str, Any]
) -> Inspection:
    inside = attributes.get("ome")
    ome = inside if isinstance(inside, dict) else attributes
    scales = _listed(ome, "multiscales")
    if "atlas" in attributes and scales:
        return _heatmap(attributes["atlas"], parts, facts)
    if "spatialdata_attrs" in attributes:
        return _spatialdata(path, attributes, parts, facts)
    if scales and isinstance(scales[0], dict):
        axes = [a.get("name") if isinstance(a, dict) else a for a in _listed(scales[0], "axes")]
        labels = {p.name.split("/")[1] for p in parts if p.name.startswith("labels/")}
        facts |= {
            "version": plain(ome.get("version") or scales[0].get("version")),
            "axes": plain(axes),
            "levels": len(_listed(scales[0], "datasets")),
            "labels": sorted(labels),
        }
        uses = ("atlas-wsi info FILE", "atlas-wsi predict FILE -o OUT", "napari FILE")
        return Inspection(kind="OME-Zarr image", facts=facts, parts=parts, uses=uses)
    if {"predictions", "coordinates"} <= {part.name for part in parts}:
        kind, writer = "predictions of tiles", "TIAToolbox"
        return Inspection(kind=kind, writer=writer, facts=facts, parts=parts)
    return Inspection(kind="Zarr group", facts=facts | plain(attributes), parts=parts)


def _spatialdata(
    path: Path, attributes: dict[str, Any], parts: tuple[Part, ...], facts: dict[str, Any]
) -> Inspection:
    for kind in ("images", "labels", "points", "shapes", "tables"):
        names = sorted(p.name for p in path.glob(f"{kind}/*") if p.is_dir())
        facts |= {kind: plain(names)} if names else {}
    ours = attributes.get("atlas")
    return Inspection(
        kind="SpatialData",
        writer="atlas-wsi" if ours else "",
        facts=facts | plain(ours if isinstance(ours, dict) else {}),
        parts=parts,
        uses=("spatialdata.read_zarr(FILE)",),
    )


def _listed(found: dict[str, Any], key: str) -> list[Any]:
    value = found.get(key)
    return value if isinstance(value, list) else []


def _heatmap(stored: Any, parts: tuple[Part, ...], facts: dict[str, Any]) -> Inspection:
    warnings: tuple[str, ...] = ()
    try:
        record = HeatmapRecord.model_validate(stored)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        warnings = (f"attributes.atlas is damaged: {plain(where)}: {plain(first['msg'])}.",)
    else:
        facts |= {
            "slide": plain(record.slide.name),
            "classes": plain([c.name for c in record.classes]),
            "cells": list(record.cells.shape),
            "slide_mpp": list(record.slide.mpp),
            "mpp_used": list(record.run.mpp_used or ()),
            "model": plain(record.run.model.name),
            "tissue": plain(record.tissue_method),
        }
    uses = ("atlas-wsi export, view, inspect (the folder that it lies in)", "napari FILE")
    return Inspection(
        kind="class probabilities of a slide (OME-Zarr)",
        writer="atlas-wsi",
        facts=facts,
        parts=parts,
        uses=uses,
        warnings=warnings,
    )


def inspect_safetensors(path: Path) -> Inspection:
    """Tell what a safetensors file is, without reading a tensor."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            parts = tuple(
                Part(name=plain(name), shape=tuple(one.get_shape()), dtype=one.get_dtype())
                for name, one in slices.items()
            )
    except (SafetensorError, OSError, ValueError) as error:
        raise CorruptResultError(f"{path} is not safetensors that can be read: {error}") from error
    facts: dict[str, Any] = {
        "tensors": len(parts),
        "weights": sum(math.prod(part.shape) for part in parts),
    }
    if "atlas_wsi" in metadata:
        return _model(metadata["atlas_wsi"], parts[:MAX_PARTS], facts)
    return Inspection(
        kind="weights", facts=facts | {"metadata": plain(metadata)}, parts=parts[:MAX_PARTS]
    )


def _model(text: str, parts: tuple[Part, ...], facts: dict[str, Any]) -> Inspection:
    from atlas_wsi.models.card import ModelCard

    warnings: tuple[str, ...] = ()
    try:
        stored = json.loads(text[:_MAX_METADATA_BYTES])
        card = ModelCard.model_validate(stored["card"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        warnings = (f"Its card is damaged: {plain(str(error))}",)
    else:
        facts |= {
            "name": card.name,
            "version": card.version,
            "domain": card.domain,
            "classes": list(card.class_names),
            "mpp": card.mpp,
            "backbone": plain(stored.get("backbone")),
            "metrics": plain(card.metrics),
            "licence": plain(card.licence),
            "limits": plain(card.limits),
        }
    uses = (
        "atlas-wsi predict SLIDE -o OUT --model FILE",
        "atlas-wsi embed SLIDE -o OUT --model FILE",
        "atlas-wsi train tiles FOLDER -o OUT --init FILE",
    )
    return Inspection(
        kind="model", writer="atlas-wsi", facts=facts, parts=parts, uses=uses, warnings=warnings
    )

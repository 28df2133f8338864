"""What a file or folder is, ours or another program's, and which commands take it."""

from __future__ import annotations

import csv
import json
import math
import warnings
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas_wsi.batch.journal import Journal
from atlas_wsi.batch.status import archive_status
from atlas_wsi.errors import AtlasError, CorruptResultError, UnsupportedFormatError
from atlas_wsi.files import printable, read_json
from atlas_wsi.heatmap.records import HeatmapRecord
from atlas_wsi.heatmap.result import SUMMARY, find_results, read_summary
from atlas_wsi.slides.open import open_slide
from atlas_wsi.tissue.hdf5_tiles import layout_of, open_hdf5

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Sequence

MAX_PARTS, _MAX_DEPTH, _MAX_JSON_BYTES, _MAX_ATTRIBUTE_BYTES = 1000, 5, 32 * 2**20, 64 * 2**10
_THRIFT = {"thrift_string_size_limit": 64 * 2**20, "thrift_container_size_limit": 10**6}
_OURS = "atlas-wsi"
_TISSUE, _ROI = (f"atlas-wsi predict SLIDE -o OUT --{option} FILE" for option in ("tissue", "roi"))
_EXPORT = "atlas-wsi export FILE --to FORMAT -o OUT"
_CLASSIFIER = "atlas-wsi predict SLIDE -o OUT --model FOLDER (tile classifiers of WSInfer)"
_SLIDE = ("atlas-wsi info FILE", "atlas-wsi predict FILE -o OUT")
_MODEL = tuple(f"atlas-wsi {verb} SLIDE -o OUT --model FILE" for verb in ("predict", "embed"))
_Table = tuple[tuple[str, str, str, "Sequence[str]"], ...]
# keys or columns that a file has; then its kind, its writer and what takes it
_CONFIG = "num_classes patch_size_pixels spacing_um_px class_names"
_KEYS: _Table = (
    ("kind schema_version slide run", "summary of a result", _OURS, ("atlas-wsi inspect FOLDER",)),
    (_CONFIG, "configuration of a tile classifier", "WSInfer", (_CLASSIFIER,)),
    ("models", "registry of models", "WSInfer", ()),
    ("model runtime timestamp", "record of a run", "WSInfer", ()),
    ("slide tasks", "state of a slide", "TRIDENT", ()),
)
_COLUMNS: _Table = (
    ("minx miny width height", "class probabilities of tiles", "WSInfer", ("QuPath", "pandas")),
    ("case_id slide_id label", "labels of slides", "CLAM", ()),
    ("slide_id status process", "list of slides with settings", "CLAM", ()),
    ("wsi", "list of slides", "TRIDENT", ("atlas-wsi batch FILE -o OUT",)),
)


@dataclass(frozen=True, slots=True)
class Part:
    """An array, table or file inside."""

    name: str
    shape: tuple[int, ...] = ()
    dtype: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is in a file or folder."""

    kind: str
    writer: str = ""  # the program that writes such files; empty if many do
    facts: dict[str, Any] = field(default_factory=dict)  # classes, resolution and so on, as JSON
    parts: tuple[Part, ...] = ()  # at most MAX_PARTS
    uses: Sequence[str] = ()  # commands that take it
    warnings: Sequence[str] = ()  # its faults


def inspect_file(path: str | os.PathLike[str]) -> Inspection:
    """Describe a file or folder.

    Parameters
    ----------
    path
        A result, archive, model, table, HDF5, Zarr, GeoJSON or slide from any source. It is
        recognized by content.

    Returns
    -------
    Inspection
        Its kind, its metadata, and which commands take it.

    Raises
    ------
    CorruptResultError
        If it does not exist or is damaged.
    """
    path = Path(path)
    try:
        seen = _folder(path) if path.is_dir() else _file(path)
    except AtlasError:
        raise
    except Exception as error:  # of any of the libraries, for a file from any source
        raise CorruptResultError(f"{path} cannot be read: {error}.") from error
    faults = tuple(map(printable, seen.warnings))
    parts = tuple(
        Part(printable(part.name), part.shape, part.dtype, printable(part.attributes, MAX_PARTS))
        for part in seen.parts[:MAX_PARTS]
    )
    return replace(seen, facts=printable(seen.facts, MAX_PARTS), parts=parts, warnings=faults)


def _file(path: Path) -> Inspection:
    with path.open("rb") as file:
        head = file.read(4096)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return _hdf5(path)
    if head.startswith(b"PAR1"):
        return _parquet(path)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return _safetensors(path)
    if text[:1] in (b"{", b"["):
        return _json(path)
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _tiff(path)
    if head.startswith(b"PK\x03\x04") and path.suffix in (".pt", ".pth", ".ckpt"):
        return Inspection("PyTorch file, which may contain code", uses=(_CLASSIFIER,))
    if text[:15].lower() == b"<!doctype html>":
        return Inspection("web page", _OURS * (b'"atlas-wsi"' in text), uses=("a browser",))
    return _csv(path) if text and b"\0" not in head else _slide(path)


def _folder(path: Path) -> Inspection:
    if (path / SUMMARY).is_file():
        return _result(path)
    if Journal(path).exists:
        slides = archive_status(path).slides
        facts = {"slides": len(slides), **Counter(str(slide.state) for slide in slides)}
        uses = ("atlas-wsi status FILE", "atlas-wsi report FILE", _EXPORT)
        return Inspection("archive", _OURS, facts, uses=uses)
    if any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zarray", ".zattrs")):
        return _zarr(path)
    if (path / "config.json").is_file():
        return _json(path / "config.json")
    with suppress(CorruptResultError):
        parts = tuple(Part(result.name) for result in find_results(path))
        return Inspection("folder of results", _OURS, {"results": len(parts)}, parts, (_EXPORT,))
    return _slide(path)


def _result(path: Path) -> Inspection:
    summary = read_summary(path)
    missing = [f"{name} is missing." for name in summary.files if not (path / name).is_file()]
    sizes: Counter[str] = Counter()
    for name, record in summary.files.items():
        sizes[name.split("/")[0]] += record.bytes
    classes = {c.name: f"{c.area:.4g} {summary.area_unit}" for c in summary.classes}
    facts = {"tissue_fraction": summary.tissue_fraction, "cell_mpp": summary.cell_mpp}
    facts = _provenance(summary) | facts | {"classes": classes}
    parts = tuple(Part(name, attributes={"bytes": size}) for name, size in sizes.items())
    uses, faults = (_EXPORT, "atlas-wsi view FILE"), (*summary.warnings, *missing[:MAX_PARTS])
    return Inspection("result of one slide", _OURS, facts, parts, uses, faults)


def _provenance(record: Any) -> dict[str, Any]:
    """List what a summary and the record in an OME-Zarr have in common."""
    slide = record.slide.model_dump(include={"path", "shape", "mpp", "mpp_source"})
    facts = {f"slide_{name}": value for name, value in slide.items()}
    facts |= record.run.model_dump(include={"model", "mpp_used", "versions"})
    return facts | {"cells": record.cells.shape, "classes": [c.name for c in record.classes]}


def _tiff(path: Path) -> Inspection:
    """Describe our heatmaps; others are slides and scenes."""
    import rasterio

    with (
        suppress(rasterio.errors.RasterioError, ValueError),  # a slide that GDAL does not read
        warnings.catch_warnings(action="ignore"),
        rasterio.open(path, driver="GTiff") as file,
    ):
        tags = file.tags()
        if {"slide", "model", "model_sha256", "colors"} <= set(tags):
            parts = (Part("bands", (file.count, *file.shape), file.dtypes[0]),)
            facts = {"slide": tags["slide"], "model": tags["model"], "classes": file.descriptions}
            kind = "class probabilities of a slide (Cloud-Optimized GeoTIFF)"
            return Inspection(kind, _OURS, facts | {"crs": file.crs}, parts, ("QGIS", "GDAL"))
    return _slide(path)


def _slide(path: Path) -> Inspection:
    with open_slide(path) as slide:
        facts = {"format": slide.meta.format, "channels": slide.meta.channel_names}
        facts |= {name: getattr(slide, name) for name in ("shape", "mpp", "mpp_source", "crs")}
    return Inspection("scene" if facts["crs"] else "slide or picture", facts=facts, uses=_SLIDE)


def _hdf5(path: Path) -> Inspection:
    """Describe tiles and features of CLAM, TRIDENT, WSInfer, STAMP and ours, or any other HDF5."""
    arrays: dict[str, Part] = {}

    def visit(name: str, item: Any) -> bool | None:
        if (shape := getattr(item, "shape", None)) is not None:
            arrays[name] = Part(name, shape, str(item.dtype), _attributes(item))
        return True if len(arrays) >= MAX_PARTS else None  # anything but None ends the walk

    with open_hdf5(path) as file:
        file.visititems(visit)
        about, layout = _attributes(file), layout_of(file)
    parts, coords = tuple(arrays.values()), arrays.get("coords")
    values = arrays.get("features") or arrays.get("feats")
    about |= values.attributes if values else {}
    if not layout or coords is None:
        kind = "features without coordinates" if values else "HDF5 file"
        return Inspection(kind, facts=about, parts=parts)
    kind, faults = "coordinates of tiles", list[str]()
    facts: dict[str, Any] = {"layout": layout, "tiles": (*coords.shape, 0)[0]}
    uses = [_TISSUE] if layout != "CLAM" or "patch_size" in coords.attributes else []
    if values is not None:
        kind = "features of tiles"
        facts["features_per_tile"] = (0, *values.shape)[-1]
        if about.get("atlas_features") == "class probabilities":
            kind = "class probabilities of tiles"
            facts["classes"] = str(about.pop("atlas_classes", "")).split("\n")
        uses.append(f"programs that learn from slide labels and read files of {layout}")
        if values.shape[:1] != coords.shape[:1]:
            faults = [f"{values.name} and coords have different lengths."]
    writer = _OURS if "atlas_model_sha256" in about else layout
    return Inspection(kind, writer, facts | about, parts, uses, faults)


def _attributes(item: Any) -> dict[str, Any]:
    """Read the attributes of an HDF5 object that are small."""
    ids = {name: item.attrs.get_id(name) for name in islice(item.attrs, MAX_PARTS)}
    sizes = {name: math.prod(i.shape or ()) * i.dtype.itemsize for name, i in ids.items()}
    small = [name for name, size in sizes.items() if size <= _MAX_ATTRIBUTE_BYTES]
    shapes = {name: f"{i.dtype} {i.shape}" for name, i in ids.items()}
    return shapes | {name: printable(item.attrs[name]) for name in small}


def _zarr(path: Path) -> Inspection:
    """Describe OME-Zarr, our heatmaps, SpatialData, TIAToolbox, or any other Zarr."""
    import zarr

    for file in ("zarr.json", ".zattrs", ".zmetadata"):
        if (path / file).is_file():
            read_json(path / file, most=_MAX_JSON_BYTES)
    root = zarr.open(str(path), mode="r")
    attributes = dict(root.attrs)
    parts = tuple(islice(_walk(root), MAX_PARTS))
    facts: dict[str, Any] = {"zarr_format": root.metadata.zarr_format}
    ome, ours = _dict(attributes.get("ome")) or attributes, _dict(attributes.get("atlas"))
    scales = _dicts(ome.get("multiscales"))
    if ours and scales:
        kind, faults = "class probabilities of a slide (OME-Zarr)", list[str]()
        try:
            facts |= _provenance(HeatmapRecord.model_validate(ours))
        except ValueError as error:
            faults = [f"attributes.atlas is damaged: {error}"]
        return Inspection(kind, _OURS, facts, parts, ("napari FILE",), faults)
    if "spatialdata_attrs" in attributes:
        for kind in ("images", "labels", "points", "shapes", "tables"):
            facts[kind] = sorted(p.name for p in path.glob(f"{kind}/*") if p.is_dir())
        writer = _OURS if ours else ""
        return Inspection("SpatialData", writer, facts | ours, parts, ("spatialdata.read_zarr",))
    if scales:
        axes, levels = scales[0].get("axes"), scales[0].get("datasets")
        facts["version"] = ome.get("version") or scales[0].get("version")
        facts["axes"] = [axis.get("name") for axis in _dicts(axes)] or axes
        facts["levels"] = len(levels) if isinstance(levels, list) else 0
        facts["labels"] = {p.name.split("/")[1] for p in parts if p.name.startswith("labels/")}
        return Inspection("OME-Zarr image", "", facts, parts, (*_SLIDE, "napari FILE"))
    if {"predictions", "coordinates"} <= {part.name for part in parts}:
        return Inspection("predictions of tiles", "TIAToolbox", facts, parts)
    kind = "Zarr group" if hasattr(root, "members") else "Zarr array"
    return Inspection(kind, facts=facts | attributes, parts=parts)


def _walk(item: Any, name: str = "", depth: int = _MAX_DEPTH) -> Iterator[Part]:
    """Yield the arrays of a Zarr group, or the array that it is."""
    if hasattr(item, "chunks"):
        attributes = {"chunks": item.chunks, **dict(item.attrs)}
        yield Part(name[1:], item.shape, str(item.dtype), attributes)
    for below, member in item.members() if depth and hasattr(item, "members") else ():
        yield from _walk(member, f"{name}/{below}", depth - 1)


def _safetensors(path: Path) -> Inspection:
    """Describe our models and other weights, without reading a tensor."""
    from safetensors import safe_open

    from atlas_wsi.models.card import ModelCard

    with safe_open(path, framework="numpy") as file:
        metadata = dict(file.metadata() or {})
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        parts = tuple(Part(n, tuple(t.get_shape()), t.get_dtype()) for n, t in slices.items())
    n_weights = sum(math.prod(part.shape) for part in parts)
    facts: dict[str, Any] = {"tensors": len(parts), "weights": n_weights}
    if "atlas_wsi" not in metadata:
        return Inspection("weights", facts=facts | {"metadata": metadata}, parts=parts)
    uses, faults = (*_MODEL, "atlas-wsi train tiles FOLDER -o OUT --init FILE"), list[str]()
    try:
        stored = json.loads(metadata["atlas_wsi"][:_MAX_JSON_BYTES])
        card = ModelCard.model_validate(stored["card"])
        facts |= card.model_dump(exclude={"classes", "training", "confusion"})
        facts |= {"classes": card.class_names, "backbone": stored.get("backbone")}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        faults = [f"Its card is damaged: {error}"]
    return Inspection("model", _OURS, facts, parts, uses, faults)


def _json(path: Path) -> Inspection:
    data = read_json(path, most=_MAX_JSON_BYTES)
    if (seen := _geojson(data) or _dsa(data)) is not None:
        return seen
    kind, table = ("JSON object", _KEYS) if isinstance(data, dict) else ("JSON list", ())
    return _known(data, table, _dict(data), kind)


def _geojson(data: Any) -> Inspection | None:
    whole = _dict(data)
    listed = [whole] if whole.get("type") == "Feature" else whole.get("features", data)
    if "coordinates" in whole and not isinstance(listed, list):
        return Inspection("GeoJSON geometry", uses=(_TISSUE, _ROI))
    features = [f for f in _dicts(listed) if f.get("type") == "Feature"]
    if not features and not (whole.get("type") == "FeatureCollection" and isinstance(listed, list)):
        return None
    properties = _dicts([f.get("properties") for f in features])
    named = [_dict(c := p.get("classification")).get("name") or c for p in properties]
    classes = Counter(name for name in named if name and isinstance(name, str))
    measured = {str(name) for p in properties[:100] for name in _dict(p.get("measurements"))}
    kinds = Counter(str(p["objectType"]) for p in properties if "objectType" in p)
    geometries = [_dict(f.get("geometry")).get("type") for f in features]
    facts = {"features": len(features), "geometries": Counter(map(str, geometries))}
    facts |= {"object_types": kinds, "classes": dict(classes.most_common())}
    facts |= {"measurements": measured, "crs": whole.get("crs")}
    is_trident, ours = any("tissue_id" in p for p in properties), _dict(whole.get("atlas"))
    writer = _OURS if ours else "TRIDENT" if is_trident else "QuPath" if kinds else ""
    uses = (_TISSUE, _ROI, *(("atlas-wsi train regions (docs/training.md)",) if classes else ()))
    return Inspection("GeoJSON features", writer, facts | ours, uses=uses)


def _dsa(data: Any) -> Inspection | None:
    whole = _dicts(data if isinstance(data, list) else [data])
    documents = [_dict(d.get("annotation")) or d for d in whole]
    named = [d for d in documents if isinstance(d.get("elements"), list) and "name" in d]
    if not named:
        return None
    elements, about = _dicts([e for d in named for e in d["elements"]]), named[0].get("attributes")
    facts: dict[str, Any] = {"annotations": [d["name"] for d in named], "attributes": about}
    facts |= {key: Counter(str(e.get(key)) for e in elements) for key in ("type", "group")}
    writer = _OURS if _dict(about).get("creator") == _OURS else ""
    return Inspection(
        "annotations of the Digital Slide Archive", writer, facts, uses=("HistomicsUI",)
    )


def _csv(path: Path) -> Inspection:
    """Describe a table by its columns."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        columns, n_rows = next(reader, []), sum(1 for _ in reader)
    if len(columns) < 2 and columns != ["wsi"]:
        raise UnsupportedFormatError(f"{path} is text, but not a table with a header line.")
    classes = [name.removeprefix("prob_") for name in columns if name.startswith("prob_")]
    facts = {"columns": columns, "rows": n_rows, "classes": classes}
    return _known(columns, _COLUMNS, facts, "CSV table")


def _parquet(path: Path) -> Inspection:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, **_THRIFT) as file:
        schema, n_rows = file.schema_arrow, file.metadata.num_rows
        is_ours = {"name", "source", "state", "mpp_source", "model_sha256"} <= set(schema.names)
        batches = file.iter_batches(columns=["state"]) if is_ours else ()
        states = Counter(str(s) for b in batches for s in b.column("state").to_pylist())
    parts = tuple(Part(column.name, (n_rows,), str(column.type)) for column in schema)
    if not is_ours:
        return Inspection("Parquet table", facts={"rows": n_rows}, parts=parts)
    classes = [name.removeprefix("area:") for name in schema.names if name.startswith("area:")]
    facts = {"slides": n_rows, "states": states, "classes": classes}
    return Inspection("table of an archive", _OURS, facts, parts, ("atlas-wsi status OUT",))


def _known(names: Iterable[str], table: _Table, facts: dict[str, Any], other: str) -> Inspection:
    for needed, kind, writer, uses in table:
        if set(needed.split()) <= set(names):
            return Inspection(kind, writer, facts, uses=uses)
    return Inspection(other, facts=facts)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _dicts(values: Any) -> list[dict[str, Any]]:
    return [v for v in values if isinstance(v, dict)] if isinstance(values, list) else []

"""What is in a file or folder, ours or of other programs, and what takes it."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas_wsi.batch.journal import Journal
from atlas_wsi.batch.status import archive_status
from atlas_wsi.errors import AtlasError, CorruptResultError, UnsupportedFormatError
from atlas_wsi.heatmap.write import SUMMARY, read_summary
from atlas_wsi.interop.arrays import inspect_hdf5, inspect_safetensors, inspect_zarr
from atlas_wsi.interop.export import find_results
from atlas_wsi.interop.found import MAX_PARTS, Inspection, Part, plain
from atlas_wsi.interop.tables import inspect_csv, inspect_json, inspect_parquet
from atlas_wsi.slides.open import open_slide

if TYPE_CHECKING:
    import os

    from atlas_wsi.batch.status import State

_HDF5, _PARQUET, _TIFF = b"\x89HDF\r\n\x1a\n", b"PAR1", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ZARR = ("zarr.json", ".zgroup", ".zarray", ".zattrs")


def inspect_file(path: str | os.PathLike[str]) -> Inspection:
    """Tell what is in a file or folder.

    Parameters
    ----------
    path
        A result, archive, model, table, HDF5, Zarr, GeoJSON or slide; it may come from anybody.
        It is recognized by content.

    Returns
    -------
    Inspection
        Its kind, what it says of itself, and what takes it.

    Raises
    ------
    CorruptResultError
        If there is nothing, or it is damaged.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return _inspect_folder(path)
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise CorruptResultError(f"{path} cannot be read: {error.strerror}.") from error
    return _inspect_content(path, head)


def _inspect_content(path: Path, head: bytes) -> Inspection:
    if head.startswith(_HDF5):
        return inspect_hdf5(path)
    if head.startswith(_PARQUET):
        return inspect_parquet(path)
    if len(head) > 8 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < _size(path):
        return inspect_safetensors(path)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:1] in (b"{", b"["):
        return inspect_json(path)
    if head.startswith(_TIFF):
        return _inspect_tiff(path)
    if head.startswith(b"PK\x03\x04") and path.suffix in (".pt", ".pth", ".ckpt"):
        return Inspection(
            kind="PyTorch file",
            warnings=("It may hold code: it is not opened to look.",),
            uses=("atlas-wsi predict SLIDE -o OUT --model FOLDER (tile classifiers of WSInfer)",),
        )
    if text[:15].lower() == b"<!doctype html>":
        ours = b'content="atlas-wsi"' in text
        return Inspection(kind="web page", writer="atlas-wsi" if ours else "", uses=("a browser",))
    if text and b"\0" not in head:
        return inspect_csv(path)
    return _inspect_slide(path)


def _size(path: Path) -> int:
    return path.stat().st_size


def _inspect_folder(path: Path) -> Inspection:
    if (path / SUMMARY).is_file():
        return _inspect_result(path)
    if Journal(path).exists:
        return _inspect_archive(path)
    if any((path / name).is_file() for name in _ZARR):
        return inspect_zarr(path)
    if (path / "config.json").is_file():
        return inspect_json(path / "config.json")
    try:
        results = find_results(path)
    except CorruptResultError:
        return _inspect_slide(path)
    return Inspection(
        kind="folder of results",
        writer="atlas-wsi",
        facts={"results": len(results)},
        parts=tuple(Part(name=plain(p.name)) for p in results[:MAX_PARTS]),
        uses=("atlas-wsi export FILE --to FORMAT -o OUT",),
    )


def _inspect_result(path: Path) -> Inspection:
    summary = read_summary(path)
    missing = [name for name in summary.files if not (path / name).is_file()]
    run = summary.run
    facts: dict[str, Any] = {
        "slide": summary.slide.path,
        "shape": list(summary.slide.shape),
        "slide_mpp": list(summary.slide.mpp),
        "mpp_source": summary.slide.mpp_source,
        "model": f"{run.model.name} {run.model.version}",
        "model_sha256": run.model.sha256,
        "mpp_used": list(run.mpp_used or ()),
        "cell_mpp": list(summary.cell_mpp),
        "cells": list(summary.cells.shape),
        "classes": {c.name: f"{c.area:.4g} {summary.area_unit}" for c in summary.classes},
        "tissue_fraction": summary.tissue_fraction,
        "versions": run.versions,
    }
    tops: dict[str, int] = {}
    for name, record in summary.files.items():
        top = name.split("/")[0]
        tops[top] = tops.get(top, 0) + record.bytes
    return Inspection(
        kind="result of one slide",
        writer="atlas-wsi",
        facts={k: plain(v) for k, v in facts.items()},
        parts=tuple(Part(name=plain(n), attributes={"bytes": size}) for n, size in tops.items()),
        uses=(
            "atlas-wsi export FILE --to FORMAT -o OUT",
            "atlas-wsi view FILE",
            "atlas_wsi.open_result(FILE)",
        ),
        warnings=(
            *(str(plain(w)) for w in summary.warnings),
            *(f"{plain(name)} is missing." for name in missing[:MAX_PARTS]),
        ),
    )


def _inspect_archive(path: Path) -> Inspection:
    status = archive_status(path)
    states: tuple[State, ...] = ("done", "running", "waiting", "failed")
    return Inspection(
        kind="archive",
        writer="atlas-wsi",
        facts={"slides": len(status.slides), **{s: status.count(s) for s in states}},
        uses=(
            "atlas-wsi status FILE",
            "atlas-wsi report FILE",
            "atlas-wsi export FILE --to FORMAT -o OUT",
        ),
    )


def _inspect_tiff(path: Path) -> Inspection:
    """Tell our heatmaps from slides and scenes."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path, driver="GTiff") as file:
                tags, names = file.tags(), file.descriptions
                shape, dtype, crs = (file.count, *file.shape), file.dtypes[0], file.crs
    except (RasterioError, ValueError):  # a slide that GDAL does not read
        return _inspect_slide(path)
    if not {"slide", "model", "model_sha256", "colors"} <= set(tags):
        return _inspect_slide(path)
    facts = {"slide": tags["slide"], "model": tags["model"], "classes": names}
    return Inspection(
        kind="class probabilities of a slide (Cloud-Optimized GeoTIFF)",
        writer="atlas-wsi",
        facts={k: plain(v) for k, v in facts.items()} | {"crs": plain(str(crs)) if crs else None},
        parts=(Part(name="bands", shape=shape, dtype=dtype),),
        uses=("QGIS, GDAL and other readers of GeoTIFF",),
    )


def _inspect_slide(path: Path) -> Inspection:
    try:
        with open_slide(path) as slide:
            facts = {
                "format": slide.meta.format,
                "shape": list(slide.shape),
                "channels": list(slide.meta.channel_names),
                "mpp": list(slide.mpp) if slide.mpp else None,
                "mpp_source": slide.mpp_source,
                "crs": slide.crs,
            }
    except AtlasError as error:
        raise UnsupportedFormatError(
            f"{path} is nothing that is known here: {error.message}",
            hint="Known are results, models, HDF5, Zarr, GeoJSON, DSA JSON, CSV, Parquet, slides.",
        ) from error
    uses = ("atlas-wsi info FILE", "atlas-wsi predict FILE -o OUT")
    return Inspection(
        kind="scene" if facts["crs"] else "slide or picture",
        facts={k: plain(v) for k, v in facts.items() if v},
        uses=uses,
    )

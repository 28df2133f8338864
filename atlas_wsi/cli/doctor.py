"""`atlas-wsi doctor`."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
import tempfile
from importlib import metadata
from typing import Annotated, Any

import typer

from atlas_wsi.cli import console

_OPTIONAL = {
    "napari": "views slides and heatmaps: pip install 'napari[all]'",
    "mamba_ssm": "fast selective scan on CUDA: pip install mamba-ssm (needs nvcc)",
    "distributed": "batches on a cluster: pip install distributed",
    "s3fs": "slides on S3: pip install s3fs",
    "timm": "encoders of timm: pip install 'atlas-wsi[timm]'",
    "onnxruntime": "tile classifiers in ONNX: pip install 'atlas-wsi[onnx]'",
}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check what is installed, what works, and say how to get what is missing."""
    checks = [*_machine(), *_readers(), *_accelerators(), *_models(), *_optional()]
    if as_json:
        console.print_json(checks)
    else:
        marks = {"ok": "[green]ok[/]", "missing": "[yellow]missing[/]", "broken": "[red]broken[/]"}
        from rich.markup import escape
        from rich.table import Table

        table = Table(box=None, show_header=False, pad_edge=False)
        for check in checks:
            table.add_row(marks[check["state"]], check["what"], escape(check["detail"]))
        console.out.print(table)
    if any(check["state"] == "broken" for check in checks):
        raise typer.Exit(1)


def _check(what: str, detail: str, state: str = "ok") -> dict[str, Any]:
    return {"what": what, "state": state, "detail": detail}


def _machine() -> list[dict[str, Any]]:
    import psutil

    import atlas_wsi

    temp = tempfile.gettempdir()
    return [
        _check(
            "atlas-wsi",
            f"{atlas_wsi.__version__}, Python {platform.python_version()}, {sys.platform}",
        ),
        _check("cores", str(os.cpu_count())),
        _check("memory", f"{psutil.virtual_memory().available / 2**30:.1f} GiB free"),
        _check("temporary files", f"{temp}, {shutil.disk_usage(temp).free / 2**30:.1f} GiB free"),
    ]


def _readers() -> list[dict[str, Any]]:
    return [
        _try(
            "openslide",
            "openslide",
            lambda m: f"library {m.__library_version__}: SVS, NDPI, MRXS, SCN, DICOM ...",
        ),
        _try("tifffile", "tifffile", lambda m: f"{m.__version__}: OME-TIFF, pyramidal TIFF"),
        _try("imagecodecs", "imagecodecs", lambda m: f"{m.__version__}: fast JPEG tiles"),
        _try("zarr", "zarr", lambda m: f"{m.__version__}: OME-Zarr"),
        _try("rasterio", "rasterio", _gdal),
    ]


def _gdal(rasterio: Any) -> str:
    from rasterio.drivers import raster_driver_extensions

    jp2 = "with" if "jp2" in raster_driver_extensions() else "without"
    return f"GDAL {rasterio.__gdal_version__}: GeoTIFF, COG, VRT, {jp2} JPEG 2000"


def _accelerators() -> list[dict[str, Any]]:
    checks = [_try("torch", "torch", lambda m: str(m.__version__))]
    if checks[0]["state"] != "ok":
        return checks
    import torch

    from atlas_wsi.models.kernels import name_kernels
    from atlas_wsi.streaming.device import choose_device, choose_dtype, has_bfloat16

    capability = torch.backends.cpu.get_cpu_capability()
    bf16 = "bfloat16 in hardware" if has_bfloat16(torch.device("cpu")) else "float32 only"
    checks.append(_check("cpu", f"{capability}, {torch.get_num_threads()} threads, {bf16}"))
    if torch.cuda.is_available():
        checks.extend(
            _check(f"cuda:{i}", f"{torch.cuda.get_device_name(i)}")
            for i in range(torch.cuda.device_count())
        )
    else:
        checks.append(_check("cuda", "no GPU is visible to torch; the CPU is used", "missing"))
    device = choose_device()
    for kernel, who in name_kernels(device, choose_dtype(device)).items():
        checks.append(_check(kernel, f"on {device}: {who}"))
    return checks


def _models() -> list[dict[str, Any]]:
    from atlas_wsi.errors import AtlasError
    from atlas_wsi.models.registry import DEFAULTS, load_model

    checks = []
    for domain, name in DEFAULTS.items():
        try:
            card = load_model(name).card
            checks.append(_check(f"model {name}", f"default for {domain}s, {card.mpp:g} um/px"))
        except AtlasError as error:
            checks.append(_check(f"model {name}", str(error), "broken"))
    return checks


def _optional() -> list[dict[str, Any]]:
    checks = []
    for name, use in _OPTIONAL.items():
        try:
            checks.append(_check(name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            checks.append(_check(name, use, "missing"))
    return checks


def _try(what: str, module: str, detail: Any) -> dict[str, Any]:
    try:
        return _check(what, detail(importlib.import_module(module)))
    except Exception as error:  # noqa: BLE001 - a broken install fails in any way; it is reported
        return _check(what, f"{type(error).__name__}: {error}", "broken")

"""What is installed and works."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal

import psutil
import torch

import atlas_wsi
from atlas_kernels import explain
from atlas_wsi.errors import AtlasError
from atlas_wsi.models.registry import DEFAULTS, load_model
from atlas_wsi.slides.registry import slide_formats
from atlas_wsi.streaming.device import choose_device, choose_dtype, has_bfloat16

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_OPTIONAL = {
    "napari": "shows slides and heatmaps: pip install 'napari[all]'",
    "mamba_ssm": "fast selective scan on CUDA: pip install mamba-ssm (needs nvcc)",
    "distributed": "batches on a cluster: pip install distributed",
    "s3fs": "slides on S3: pip install s3fs",
    "timm": "encoders of timm: pip install 'atlas-wsi[timm]'",
    "onnxruntime": "tile classifiers in ONNX: pip install 'atlas-wsi[onnx]'",
}


@dataclass(frozen=True, slots=True)
class Check:
    """One part of an installation."""

    name: str
    """The part."""
    detail: str
    """Its version and abilities, or how to install it."""
    state: Literal["ok", "missing", "broken"] = "ok"
    """``"missing"`` is optional, ``"broken"`` is not."""


def check_installation() -> list[Check]:
    """Check the machine, the readers, the accelerators, the models and the optional packages.

    Returns
    -------
    list
        One check per part.
    """
    return [*_machine(), *_readers(), *_accelerators(), *_models(), *_optional()]


def _machine() -> Iterator[Check]:
    temp = tempfile.gettempdir()
    system = f"Python {platform.python_version()}, {sys.platform}"
    yield Check("atlas-wsi", f"{atlas_wsi.__version__}, {system}")
    yield Check("cores", str(os.cpu_count()))
    yield Check("memory", f"{psutil.virtual_memory().available / 2**30:.1f} GiB free")
    yield Check("temporary files", f"{temp}, {shutil.disk_usage(temp).free / 2**30:.1f} GiB free")


def _readers() -> Iterator[Check]:
    yield _import(
        "openslide", lambda m: f"library {m.__library_version__}: SVS, NDPI, MRXS, SCN, DICOM ..."
    )
    yield _import("tifffile", lambda m: f"{m.__version__}: OME-TIFF, pyramidal TIFF")
    yield _import("imagecodecs", lambda m: f"{m.__version__}: fast JPEG tiles")
    yield _import("zarr", lambda m: f"{m.__version__}: OME-Zarr")
    yield _import("rasterio", _gdal)
    yield Check("slide formats", "; ".join(kind.title for kind in slide_formats()))


def _gdal(rasterio: Any) -> str:
    from rasterio.drivers import raster_driver_extensions

    jp2 = "with" if "jp2" in raster_driver_extensions() else "without"
    return f"GDAL {rasterio.__gdal_version__}: GeoTIFF, COG, VRT, {jp2} JPEG 2000"


def _accelerators() -> Iterator[Check]:
    yield Check("torch", str(torch.__version__))
    capability = torch.backends.cpu.get_cpu_capability()
    bf16 = "bfloat16 in hardware" if has_bfloat16(torch.device("cpu")) else "float32 only"
    yield Check("cpu", f"{capability}, {torch.get_num_threads()} threads, {bf16}")
    for index in range(torch.cuda.device_count()):
        yield Check(f"cuda:{index}", torch.cuda.get_device_name(index))
    if not torch.cuda.is_available():
        yield Check("cuda", "no GPU is visible to torch; the CPU is used", "missing")
    device = choose_device()
    for kernel, text in explain(device, dtype=choose_dtype(device)).items():
        yield Check(kernel, f"on {device}: {text}")


def _models() -> Iterator[Check]:
    for domain, name in DEFAULTS.items():
        try:
            card = load_model(name).card
            yield Check(f"model {name}", f"default for {domain}s, {card.mpp:g} um/px")
        except AtlasError as error:
            yield Check(f"model {name}", str(error), "broken")


def _optional() -> Iterator[Check]:
    for name, use in _OPTIONAL.items():
        try:
            yield Check(name, metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Check(name, use, "missing")


def _import(name: str, detail: Callable[[Any], str]) -> Check:
    try:
        return Check(name, detail(importlib.import_module(name)))
    except Exception as error:  # noqa: BLE001 - a broken package fails in any way; it is reported
        return Check(name, f"{type(error).__name__}: {error}", "broken")

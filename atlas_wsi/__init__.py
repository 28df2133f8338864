"""Gigapixel slides and scenes analyzed with global context.

Names are resolved when they are first used, so that importing the package stays fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atlas_wsi.batch.estimate import ArchiveEstimate, estimate_archive
    from atlas_wsi.batch.options import BatchOptions, RunOptions
    from atlas_wsi.batch.report import write_report
    from atlas_wsi.batch.run import predict_archive
    from atlas_wsi.batch.status import ArchiveStatus, archive_status
    from atlas_wsi.batch.verify import verify_archive
    from atlas_wsi.errors import (
        ArchiveError,
        AtlasError,
        BudgetError,
        Cancelled,
        CellSizeError,
        CheckpointMismatchError,
        CorruptResultError,
        DatasetError,
        DiskFullError,
        MemoryBudgetError,
        MissingResolutionError,
        ModelError,
        OutputNotWritableError,
        RegionOutsideSlideError,
        ResultError,
        ResultExistsError,
        SlideError,
        UnknownModelError,
        UnreachableSlideError,
        UnreadableSlideError,
        UnsupportedFormatError,
        UntrustedWeightsError,
    )
    from atlas_wsi.files import write_whole
    from atlas_wsi.grid import Box, Grid
    from atlas_wsi.heatmap.formats import RESULT_FORMATS
    from atlas_wsi.heatmap.formats.geojson import Annotation, write_annotations, write_geojson
    from atlas_wsi.heatmap.heatmap import AttentionMap, Heatmap
    from atlas_wsi.heatmap.regions import find_regions
    from atlas_wsi.heatmap.result import find_results, open_result
    from atlas_wsi.inference.benchmark import Benchmark, benchmark
    from atlas_wsi.inference.embed import embed
    from atlas_wsi.inference.embeddings import TileEmbeddings
    from atlas_wsi.inference.installation import Check, check_installation
    from atlas_wsi.inference.predict import choose_model, predict
    from atlas_wsi.inference.slide_run import SlideResult, predict_to_folder
    from atlas_wsi.interop.export import export_result
    from atlas_wsi.interop.formats import EXPORT_FORMATS
    from atlas_wsi.interop.inspection import inspect_file
    from atlas_wsi.models.card import ModelCard
    from atlas_wsi.models.listing import ModelEntry, describe_model, list_models
    from atlas_wsi.models.model import Model
    from atlas_wsi.models.registry import load_model, shipped_models
    from atlas_wsi.models.tile_classifier import TileClassifier, load_tile_classifier
    from atlas_wsi.progress import CancelToken, Progress
    from atlas_wsi.slides.open import open_slide
    from atlas_wsi.slides.resolution import parse_gsd
    from atlas_wsi.slides.samples import fetch_sample
    from atlas_wsi.slides.slide import Slide
    from atlas_wsi.streaming.plan import parse_bytes
    from atlas_wsi.tissue.areas import read_tissue
    from atlas_wsi.tissue.mask import TissueMask, tissue_mask
    from atlas_wsi.tissue.windows import WindowGrid
    from atlas_wsi.training.cross_validation import CrossValidation, cross_validate
    from atlas_wsi.training.data.labeled import LabeledData
    from atlas_wsi.training.data.region_table import read_regions
    from atlas_wsi.training.data.slide_table import read_slide_table
    from atlas_wsi.training.data.tile_folder import read_tile_folder
    from atlas_wsi.training.evaluation import Evaluation, evaluate
    from atlas_wsi.training.recipe import CardSpec, Recipe, TrainOptions
    from atlas_wsi.training.train import train

__version__ = "0.1.0"

_HOME = {
    "Annotation": "atlas_wsi.heatmap.formats.geojson",
    "ArchiveError": "atlas_wsi.errors",
    "ArchiveEstimate": "atlas_wsi.batch.estimate",
    "ArchiveStatus": "atlas_wsi.batch.status",
    "AtlasError": "atlas_wsi.errors",
    "AttentionMap": "atlas_wsi.heatmap.heatmap",
    "BatchOptions": "atlas_wsi.batch.options",
    "Benchmark": "atlas_wsi.inference.benchmark",
    "Box": "atlas_wsi.grid",
    "BudgetError": "atlas_wsi.errors",
    "CancelToken": "atlas_wsi.progress",
    "Cancelled": "atlas_wsi.errors",
    "CardSpec": "atlas_wsi.training.recipe",
    "CellSizeError": "atlas_wsi.errors",
    "Check": "atlas_wsi.inference.installation",
    "CheckpointMismatchError": "atlas_wsi.errors",
    "CorruptResultError": "atlas_wsi.errors",
    "CrossValidation": "atlas_wsi.training.cross_validation",
    "DatasetError": "atlas_wsi.errors",
    "DiskFullError": "atlas_wsi.errors",
    "EXPORT_FORMATS": "atlas_wsi.interop.formats",
    "Evaluation": "atlas_wsi.training.evaluation",
    "Grid": "atlas_wsi.grid",
    "Heatmap": "atlas_wsi.heatmap.heatmap",
    "MemoryBudgetError": "atlas_wsi.errors",
    "MissingResolutionError": "atlas_wsi.errors",
    "Model": "atlas_wsi.models.model",
    "LabeledData": "atlas_wsi.training.data.labeled",
    "ModelCard": "atlas_wsi.models.card",
    "ModelEntry": "atlas_wsi.models.listing",
    "ModelError": "atlas_wsi.errors",
    "OutputNotWritableError": "atlas_wsi.errors",
    "Progress": "atlas_wsi.progress",
    "RESULT_FORMATS": "atlas_wsi.heatmap.formats",
    "Recipe": "atlas_wsi.training.recipe",
    "RegionOutsideSlideError": "atlas_wsi.errors",
    "ResultError": "atlas_wsi.errors",
    "ResultExistsError": "atlas_wsi.errors",
    "RunOptions": "atlas_wsi.batch.options",
    "Slide": "atlas_wsi.slides.slide",
    "SlideError": "atlas_wsi.errors",
    "SlideResult": "atlas_wsi.inference.slide_run",
    "TileClassifier": "atlas_wsi.models.tile_classifier",
    "TileEmbeddings": "atlas_wsi.inference.embeddings",
    "TissueMask": "atlas_wsi.tissue.mask",
    "TrainOptions": "atlas_wsi.training.recipe",
    "UnknownModelError": "atlas_wsi.errors",
    "UnreachableSlideError": "atlas_wsi.errors",
    "UnreadableSlideError": "atlas_wsi.errors",
    "UnsupportedFormatError": "atlas_wsi.errors",
    "UntrustedWeightsError": "atlas_wsi.errors",
    "WindowGrid": "atlas_wsi.tissue.windows",
    "archive_status": "atlas_wsi.batch.status",
    "benchmark": "atlas_wsi.inference.benchmark",
    "check_installation": "atlas_wsi.inference.installation",
    "choose_model": "atlas_wsi.inference.predict",
    "cross_validate": "atlas_wsi.training.cross_validation",
    "describe_model": "atlas_wsi.models.listing",
    "embed": "atlas_wsi.inference.embed",
    "estimate_archive": "atlas_wsi.batch.estimate",
    "evaluate": "atlas_wsi.training.evaluation",
    "export_result": "atlas_wsi.interop.export",
    "fetch_sample": "atlas_wsi.slides.samples",
    "find_regions": "atlas_wsi.heatmap.regions",
    "find_results": "atlas_wsi.heatmap.result",
    "inspect_file": "atlas_wsi.interop.inspection",
    "list_models": "atlas_wsi.models.listing",
    "load_model": "atlas_wsi.models.registry",
    "load_tile_classifier": "atlas_wsi.models.tile_classifier",
    "open_result": "atlas_wsi.heatmap.result",
    "open_slide": "atlas_wsi.slides.open",
    "parse_bytes": "atlas_wsi.streaming.plan",
    "parse_gsd": "atlas_wsi.slides.resolution",
    "predict": "atlas_wsi.inference.predict",
    "predict_archive": "atlas_wsi.batch.run",
    "predict_to_folder": "atlas_wsi.inference.slide_run",
    "read_regions": "atlas_wsi.training.data.region_table",
    "read_slide_table": "atlas_wsi.training.data.slide_table",
    "read_tile_folder": "atlas_wsi.training.data.tile_folder",
    "read_tissue": "atlas_wsi.tissue.areas",
    "shipped_models": "atlas_wsi.models.registry",
    "tissue_mask": "atlas_wsi.tissue.mask",
    "train": "atlas_wsi.training.train",
    "verify_archive": "atlas_wsi.batch.verify",
    "write_annotations": "atlas_wsi.heatmap.formats.geojson",
    "write_geojson": "atlas_wsi.heatmap.formats.geojson",
    "write_report": "atlas_wsi.batch.report",
    "write_whole": "atlas_wsi.files",
}

__all__ = [
    "EXPORT_FORMATS",
    "RESULT_FORMATS",
    "Annotation",
    "ArchiveError",
    "ArchiveEstimate",
    "ArchiveStatus",
    "AtlasError",
    "AttentionMap",
    "BatchOptions",
    "Benchmark",
    "Box",
    "BudgetError",
    "CancelToken",
    "Cancelled",
    "CardSpec",
    "CellSizeError",
    "Check",
    "CheckpointMismatchError",
    "CorruptResultError",
    "CrossValidation",
    "DatasetError",
    "DiskFullError",
    "Evaluation",
    "Grid",
    "Heatmap",
    "LabeledData",
    "MemoryBudgetError",
    "MissingResolutionError",
    "Model",
    "ModelCard",
    "ModelEntry",
    "ModelError",
    "OutputNotWritableError",
    "Progress",
    "Recipe",
    "RegionOutsideSlideError",
    "ResultError",
    "ResultExistsError",
    "RunOptions",
    "Slide",
    "SlideError",
    "SlideResult",
    "TileClassifier",
    "TileEmbeddings",
    "TissueMask",
    "TrainOptions",
    "UnknownModelError",
    "UnreachableSlideError",
    "UnreadableSlideError",
    "UnsupportedFormatError",
    "UntrustedWeightsError",
    "WindowGrid",
    "__version__",
    "archive_status",
    "benchmark",
    "check_installation",
    "choose_model",
    "cross_validate",
    "describe_model",
    "embed",
    "estimate_archive",
    "evaluate",
    "export_result",
    "fetch_sample",
    "find_regions",
    "find_results",
    "inspect_file",
    "list_models",
    "load_model",
    "load_tile_classifier",
    "open_result",
    "open_slide",
    "parse_bytes",
    "parse_gsd",
    "predict",
    "predict_archive",
    "predict_to_folder",
    "read_regions",
    "read_slide_table",
    "read_tile_folder",
    "read_tissue",
    "shipped_models",
    "tissue_mask",
    "train",
    "verify_archive",
    "write_annotations",
    "write_geojson",
    "write_report",
    "write_whole",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'atlas_wsi' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

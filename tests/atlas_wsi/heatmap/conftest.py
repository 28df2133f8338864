from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from rasterio.crs import CRS
from scipy.ndimage import gaussian_filter

from atlas_wsi.grid import Grid
from atlas_wsi.heatmap.heatmap import Heatmap
from atlas_wsi.heatmap.records import ModelUsed, RunRecord, SlideInfo
from atlas_wsi.tissue.mask import TissueMask

COLORS = ("#c83232", "#96c896", "#a05aa0", "#f0c800", "#1f77b4")
CLASSES = ("tumor", "stroma", "immune cells", "necrosis", "mucosa")


def make_heatmap(
    shape: tuple[int, int] = (30, 40),
    *,
    n_classes: int = 3,
    seed: int = 0,
    tissue: float = 0.6,
    winner: np.ndarray | None = None,
    step: tuple[float, float] = (64.0, 64.0),
    is_scene: bool = False,
    slide_shape: tuple[int, int] | None = None,
    **slide: Any,
) -> Heatmap:
    """Make a result with smooth class regions; `winner` (-1 for glass) gives them exactly."""
    rng = np.random.default_rng(seed)
    if winner is None:
        field = gaussian_filter(rng.normal(size=(n_classes, *shape)), (0, 3, 3))
        winner = field.argmax(0)
        if tissue < 1:
            place = gaussian_filter(rng.normal(size=shape), 5)
            winner[place >= np.quantile(place, tissue)] = -1
    shape = winner.shape
    logits = 0.5 * rng.normal(size=(n_classes, *shape)) + 4 * (
        np.arange(n_classes)[:, None, None] == winner
    )
    probabilities = np.exp(logits) / np.exp(logits).sum(0)
    probabilities[:, winner < 0] = np.nan
    known = winner >= 0
    if is_scene:
        slide = {
            "crs": CRS.from_epsg(32633).to_wkt(),
            "transform": (10.0, 0.0, 5e5, 0.0, -10.0, 5.4e6),
            "mpp": (1e7, 1e7),
        } | slide
    if slide_shape is None:  # the last cells reach over the border
        slide_shape = tuple(max(1, round((n - 0.3) * s)) for n, s in zip(shape, step, strict=True))
    info = {
        "name": "slide-1",
        "path": "/data/slide-1.svs",
        "shape": slide_shape,
        "mpp": (0.5, 0.5),
        "mpp_source": "openslide.mpp-x",
        "format": "aperio",
    } | slide
    return Heatmap(
        probabilities=probabilities.astype(np.float32),
        grid=Grid(shape=shape, step_px=step),
        classes=CLASSES[:n_classes],
        colors=COLORS[:n_classes],
        scores=dict.fromkeys(CLASSES[:n_classes], 1 / n_classes) if known.any() else {},
        tissue=TissueMask(
            mask=known.repeat(2, axis=0).repeat(2, axis=1),
            grid=Grid(shape=(shape[0] * 2, shape[1] * 2), step_px=(step[0] / 2, step[1] / 2)),
            method="brightfield",
        ),
        slide=SlideInfo(**info),
        run=RunRecord(
            model=ModelUsed(name="lung-he", version="1", sha256="ab" * 32, reason="only one"),
            mpp_asked=(0.5, 0.5),
            mpp_used=(0.5, 0.5),
            parameters={"cell_px": 64, "precision": "bf16"},
            versions={"atlas-wsi": "0.1.0"},
            wall_s=1.5,
            warnings=("The magnification contradicts the resolution.",),
        ),
    )


@pytest.fixture(name="make_heatmap")
def make_heatmap_fixture():
    return make_heatmap


@pytest.fixture
def heatmap() -> Heatmap:
    return make_heatmap()


@pytest.fixture
def scene() -> Heatmap:
    return make_heatmap((600, 700), n_classes=2, is_scene=True, name="scene-1")

"""Where to predict: the whole slide, its tissue, the current view, or drawn areas."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from atlas_wsi import Grid, TissueMask

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from numpy.typing import NDArray

    from atlas_wsi import Slide
    from napari_atlas_wsi._frame import Frame

Scope = Literal["tissue", "whole slide", "current view", "drawn areas"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
DRAWN = ("rectangle", "polygon", "ellipse")
ELLIPSE_CORNERS = 64


def areas_of_view(viewer: ViewerModel, frame: Frame) -> list[NDArray[np.float64]]:
    """Return the rectangle that the canvas shows: level-0 `(y, x)` of its four corners."""
    center = np.array(viewer.scene.camera.center[-2:])
    half = np.array(viewer.canvas.size) / viewer.scene.camera.zoom / 2
    signs = np.array([(-1, -1), (-1, 1), (1, 1), (1, -1)])
    return [_to_level0(center + signs * half, frame)]


def areas_of_shapes(layer: Any, frame: Frame) -> list[NDArray[np.float64]]:
    """Return the areas drawn in a shapes layer: level-0 `(y, x)` of their corners."""
    areas = []
    for kind, corners in zip(layer.shape_type, layer.data, strict=True):
        if kind not in DRAWN:
            continue
        ring = _ellipse(corners) if kind == "ellipse" else corners
        world = np.array([layer.data_to_world(corner) for corner in ring])
        areas.append(_to_level0(world[:, -2:], frame))
    return areas


def whole_mask(slide: Slide) -> TissueMask:
    """Return a mask of the whole slide."""
    rows, cols = slide.shape
    grid = Grid.over(slide.shape, (max(1.0, rows / 512), max(1.0, cols / 512)))
    return TissueMask(mask=np.ones(grid.shape, bool), grid=grid, method="whole slide")


def _to_level0(world: NDArray[np.float64], frame: Frame) -> NDArray[np.float64]:
    return np.array([frame.to_level0((y, x)) for y, x in world])


def _ellipse(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return points on the ellipse that four corners frame."""
    center, across, down = corners.mean(axis=0), corners[1] - corners[0], corners[3] - corners[0]
    angle = np.linspace(0, 2 * np.pi, ELLIPSE_CORNERS, endpoint=False)[:, None]
    return np.asarray(center + np.cos(angle) * across / 2 + np.sin(angle) * down / 2)

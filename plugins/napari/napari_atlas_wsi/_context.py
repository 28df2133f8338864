"""What the coarse scales attend to for the cell under the cursor."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_atlas_wsi._layers import cell_at

if TYPE_CHECKING:
    from napari.components import ViewerModel

    from atlas_wsi import AttentionMap, Heatmap
    from napari_atlas_wsi._frame import Frame

CONTEXT_KEY = "atlas_wsi_context"
_RAMP = [[0.1, 0.0, 0.3, 0.0], [0.75, 0.1, 0.55, 0.55], [1.0, 0.85, 0.2, 0.9]]


class AttentionWorker:
    """Computes the attention of the latest requested position, one at a time, in a thread."""

    def __init__(self, heatmap: Heatmap) -> None:
        if heatmap.context is None:
            raise ValueError("the heatmap was predicted without its context")
        self.heatmap = heatmap
        self._context = heatmap.context
        self._lock = threading.Lock()
        self._requested: tuple[float, float] | None = None
        self._maps: list[AttentionMap] | None = None
        self._thread: threading.Thread | None = None
        self._last: tuple[int, ...] | None = None
        self.error: BaseException | None = None

    def request(self, y: float, x: float) -> None:
        """Request a level-0 position; an earlier request that has not started is dropped."""
        cell = cell_at(self.heatmap.grid, y, x)
        if cell == self._last:
            return
        self._last = cell
        with self._lock:
            self._requested = (y, x)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True)
                self._thread.start()

    def take(self) -> list[AttentionMap] | None:
        """Return the newest maps, once."""
        with self._lock:
            maps, self._maps = self._maps, None
        return maps

    def _work(self) -> None:
        while True:
            with self._lock:
                requested, self._requested = self._requested, None
                if requested is None:
                    self._thread = None
                    return
            try:
                maps = self._context.attention(*requested)
            except BaseException as error:  # noqa: BLE001 - shown in the window
                self.error = error
                maps = []
            with self._lock:
                self._maps = maps


def describe_fractions(maps: list[AttentionMap]) -> str:
    """Describe how a cell's attention is divided over the scales."""
    fractions = [float(scale.weights.sum()) for scale in maps]
    parts = [f"own window {1 - sum(fractions):.0%}"]
    for number, (scale, fraction) in enumerate(zip(maps, fractions, strict=True), 1):
        parts.append(f"scale {number} ({scale.grid.step_px[0]:.0f} px per token) {fraction:.0%}")
    return " · ".join(parts)


def show_attention(
    viewer: ViewerModel, attention: AttentionMap, frame: Frame, *, scale: int, slide: str
) -> Any:
    """Draw the attention to a coarse scale; the layer is made once and then updated."""
    from napari.layers import Image
    from napari.utils.colormaps import Colormap

    placement = frame.placement(attention.grid.step_px, attention.grid.origin_px)
    weights = np.ascontiguousarray(attention.weights, dtype=np.float32)
    limits = (0.0, max(float(weights.max()), 1e-9))
    name = f"{slide}: attends to, scale {scale}"
    layer = next((x for x in viewer.layers if CONTEXT_KEY in x.metadata), None)
    if layer is None:
        active = viewer.layers.selection.active
        layer = Image(
            weights,
            name=name,
            colormap=Colormap(_RAMP, name="atlas-wsi attention"),
            contrast_limits=limits,
            blending="translucent_no_depth",
            interpolation2d="nearest",
            metadata={CONTEXT_KEY: scale},
            **placement,
        )
        viewer.add_layer(layer)
        viewer.layers.selection.active = active  # the cursor still reads the heatmap
        return layer
    layer.name = name
    layer.data = weights
    layer.contrast_limits_range = limits
    layer.contrast_limits = limits
    for key in placement.keys() & {"affine", "scale", "translate"}:
        setattr(layer, key, placement[key])
    return layer

"""What the coarse scales attend to for the cell under the cursor."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from napari.components import ViewerModel

    from atlas_wsi import AttentionMap, Heatmap
    from napari_atlas_wsi._frame import Frame

CONTEXT_KEY = "atlas_wsi_context"
_RAMP = [[0.1, 0.0, 0.3, 0.0], [0.75, 0.1, 0.55, 0.55], [1.0, 0.85, 0.2, 0.9]]


class Asker:
    """Computes the attention of the latest place asked for, one at a time, in a thread."""

    def __init__(self, heatmap: Heatmap) -> None:
        if heatmap.context is None:
            raise ValueError("the heatmap was predicted without its context")
        self._context = heatmap.context
        self._heatmap = heatmap
        self._lock = threading.Lock()
        self._wanted: tuple[float, float] | None = None
        self._answer: list[AttentionMap] | None = None
        self._thread: threading.Thread | None = None
        self._last: tuple[int, ...] | None = None
        self.error: BaseException | None = None

    def ask(self, y: float, x: float) -> None:
        """Ask for a place; what was asked before and is not begun is dropped."""
        grid = self._heatmap.grid
        cell = (
            int((y - grid.origin_px[0]) // grid.step_px[0]),
            int((x - grid.origin_px[1]) // grid.step_px[1]),
        )
        if cell == self._last:
            return
        self._last = cell
        with self._lock:
            self._wanted = (y, x)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True)
                self._thread.start()

    def asks(self, heatmap: Heatmap) -> bool:
        """Tell whether the answers are about a heatmap."""
        return self._heatmap is heatmap

    def take(self) -> list[AttentionMap] | None:
        """Return the newest answer, once."""
        with self._lock:
            answer, self._answer = self._answer, None
        return answer

    def _work(self) -> None:
        while True:
            with self._lock:
                wanted, self._wanted = self._wanted, None
                if wanted is None:
                    self._thread = None
                    return
            try:
                answer = self._context.attention(*wanted)
            except BaseException as error:  # noqa: BLE001 - told in the window
                self.error = error
                answer = []
            with self._lock:
                self._answer = answer


def shares_of(maps: list[AttentionMap]) -> str:
    """Tell how a cell's attention is divided."""
    shares = [float(one.weights.sum()) for one in maps]
    parts = [f"own window {1 - sum(shares):.0%}"]
    for number, (one, share) in enumerate(zip(maps, shares, strict=True), 1):
        parts.append(f"scale {number} ({one.grid.step_px[0]:.0f} px a token) {share:.0%}")
    return " · ".join(parts)


def show_attention(
    viewer: ViewerModel, one: AttentionMap, frame: Frame, *, scale: int, slide: str
) -> Any:
    """Draw the attention to a coarse scale; the layer is made once and then kept."""
    from napari.layers import Image
    from napari.utils.colormaps import Colormap

    place = frame.place(one.grid.step_px, one.grid.origin_px)
    weights = np.ascontiguousarray(one.weights, dtype=np.float32)
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
            **place,
        )
        viewer.add_layer(layer)
        viewer.layers.selection.active = active  # the cursor goes on reading the heatmap
        return layer
    layer.name = name
    layer.data = weights
    layer.contrast_limits_range = limits
    layer.contrast_limits = limits
    if "affine" in place:
        layer.affine = place["affine"]
    else:
        layer.scale, layer.translate = place["scale"], place["translate"]
    return layer

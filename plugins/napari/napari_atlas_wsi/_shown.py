"""A heatmap in a viewer: its layers synchronized with class, threshold and a running prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from psygnal import Signal

from napari_atlas_wsi._layers import FRAME_KEY, PART_KEY, RESULT_KEY, describe, heatmap_layers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from napari.components import ViewerModel
    from napari.layers import Layer
    from numpy.typing import NDArray

    from atlas_wsi import Box, Heatmap
    from napari_atlas_wsi._frame import Frame

SHOWN_KEY = "atlas_wsi_shown"
MIN_VIEW_CELLS = 24
"""Cells across that the camera shows around a hot spot, at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HotSpot:
    """A connected part of the slide where a class is probable."""

    center: tuple[float, float]
    """Position in the world `(y, x)`."""
    extent: float
    """Its longer side in the world."""
    mass: float
    """Sum of the class's probability over its cells."""
    mean: float
    """Mean probability of the class."""


class ShownHeatmap:
    """The layers of one heatmap in a viewer; one that the user removes is not added again."""

    changed = Signal()
    """Another class, threshold or heatmap."""

    def __init__(
        self,
        viewer: ViewerModel,
        heatmap: Heatmap,
        *,
        frame: Frame | None = None,
        index: int | None = None,
    ) -> None:
        from napari.layers import Layer

        self.viewer = viewer
        self.heatmap = heatmap
        self.threshold = 0.0
        layers = list(self._layers())
        made = []
        if not layers:
            made = [Layer.create(*layer) for layer in heatmap_layers(heatmap, frame, shown=index)]
        parts = {layer.metadata[PART_KEY]: layer for layer in layers + made}
        self.frame: Frame = next(iter(parts.values())).metadata[FRAME_KEY]
        self.index = 0
        if "probability" in parts:
            name = parts["probability"].name.removeprefix(f"{heatmap.slide.name}: ")
            self.index = heatmap.classes.index(name) if name in heatmap.classes else 0
            install_hover(parts["probability"])
        if "tissue" in parts:
            parts["tissue"].contour = 1  # an outline hides nothing
            parts["tissue"].visible = True
        self._written = parts["classes"].data.copy() if "classes" in parts else None
        self._edited: NDArray[np.bool_] = np.zeros(heatmap.grid.shape, bool)
        for layer in parts.values():
            layer.metadata = {**layer.metadata, SHOWN_KEY: self}
        for layer in made:  # last: panels read them at once
            viewer.add_layer(layer)

    def _layers(self) -> Iterator[Layer]:
        return (x for x in self.viewer.layers if x.metadata.get(RESULT_KEY) is self.heatmap)

    def layer(self, part: str) -> Any:
        """Return a layer of the heatmap, None if it was removed."""
        return next((x for x in self._layers() if x.metadata[PART_KEY] == part), None)

    def select(self, index: int) -> None:
        """Show the probabilities of another class."""
        self.index = index
        shown = self.layer("probability")
        if shown is not None:
            shown.name = f"{self.heatmap.slide.name}: {self.heatmap.classes[index]}"
        self.refresh()
        self.changed.emit()

    def set_threshold(self, threshold: float) -> None:
        """Hide what is less probable."""
        self.threshold = threshold
        self.refresh()
        self.changed.emit()

    def set_opacity(self, opacity: float) -> None:
        """Make probabilities and class map more or less transparent."""
        for part in ("probability", "classes"):
            layer = self.layer(part)
            if layer is not None:
                layer.opacity = opacity

    def take(self, heatmap: Heatmap) -> None:
        """Go on with another heatmap on the same cells, such as the final one of a run."""
        for layer in list(self._layers()):
            layer.metadata = {**layer.metadata, RESULT_KEY: heatmap}
        self.heatmap = heatmap
        self.refresh()
        self.changed.emit()

    def refresh(self, box: Box | None = None) -> None:
        """Draw the layers from the heatmap."""
        cells: tuple[slice, ...] = (slice(None), slice(None))
        if box is not None:
            cells = (slice(box.row, box.row_end), slice(box.col, box.col_end))
        values = self.heatmap.probabilities[(slice(None), *cells)].astype(np.float32)
        probability, classes = self.layer("probability"), self.layer("classes")
        if probability is not None:
            plane = values[self.index]
            with np.errstate(invalid="ignore"):
                probability.data[cells] = np.where(plane >= self.threshold, plane, np.nan)
            probability.refresh(extent=False)
        if classes is not None and self._written is not None:
            self.note_edits()
            values[np.isnan(values)] = -1
            winner = np.where(values.max(0) >= self.threshold, values.argmax(0) + 1, 0)
            classes.data[cells] = np.where(self._edited[cells], classes.data[cells], winner)
            self._written[cells] = classes.data[cells]
            classes.refresh(extent=False)

    # correcting by hand -----------------------------------------------------------------------

    def note_edits(self) -> NDArray[np.bool_]:
        """Tell which cells of the class map a person changed."""
        classes = self.layer("classes")
        if classes is not None and self._written is not None:
            self._edited |= classes.data != self._written
            self._written = classes.data.copy()
        return self._edited

    def corrected(self, *, whole: bool) -> NDArray[Any]:
        """Return the class map as a person left it, or only what they changed; else 0."""
        edited, classes = self.note_edits(), self.layer("classes")
        labels = np.zeros(self.heatmap.grid.shape, int) if classes is None else classes.data
        return labels if whole else np.where(edited, labels, 0)

    # hot spots --------------------------------------------------------------------------------

    def hot_spots(self, threshold: float) -> list[HotSpot]:
        """Find where the chosen class is probable."""
        from skimage.measure import label, regionprops

        plane = np.nan_to_num(self.heatmap.probabilities[self.index].astype(np.float32))
        hot = label(plane >= max(threshold, 1e-6), connectivity=2)  # type: ignore[no-untyped-call]
        grid = self.heatmap.grid
        spots = []
        for region in regionprops(hot, plane):  # type: ignore[no-untyped-call]
            row, col = region.centroid_weighted
            top, left, bottom, right = region.bbox
            center = self.frame.to_world(
                grid.origin_px[0] + (row + 0.5) * grid.step_px[0],
                grid.origin_px[1] + (col + 0.5) * grid.step_px[1],
            )
            cells = max(bottom - top, right - left, MIN_VIEW_CELLS)
            spots.append(
                HotSpot(
                    center=center,
                    extent=cells * self.cell_world(),
                    mass=float(region.intensity_mean * region.area),
                    mean=float(region.intensity_mean),
                )
            )
        return sorted(spots, key=lambda spot: -spot.mass)

    def look_at(self, spot: HotSpot) -> None:
        """Move the camera to a hot spot."""
        camera = self.viewer.scene.camera
        camera.center = (0, *spot.center)
        camera.zoom = min(self.viewer.canvas.size) / (1.5 * spot.extent)

    def cell_world(self) -> float:
        """Return the side of a cell in the world."""
        linear = self.frame.matrix[:2, :2] @ np.diag(self.heatmap.grid.step_px)
        return float(np.abs(np.linalg.det(linear)) ** 0.5)


def shown_in(viewer: ViewerModel) -> list[ShownHeatmap]:
    """Find the heatmaps of a viewer."""
    found: dict[int, ShownHeatmap] = {}
    for layer in list(viewer.layers):
        heatmap = layer.metadata.get(RESULT_KEY)
        if heatmap is not None and id(heatmap) not in found:
            shown = layer.metadata.get(SHOWN_KEY)
            found[id(heatmap)] = shown or ShownHeatmap(viewer, heatmap)
    return list(found.values())


def install_hover(layer: Any) -> None:
    """Make the status bar name class, probability and place under the cursor."""
    if layer.metadata.get(PART_KEY) != "probability":
        return
    plain = type(layer).get_status

    def get_status(position: Any = None, **options: Any) -> dict[str, str]:
        # called from a thread of napari's own: nothing of Qt in here
        status: dict[str, str] = plain(layer, position, **options)
        if position is None:
            return status
        world = position if options.get("world") else layer.data_to_world(position)
        heatmap, frame = layer.metadata[RESULT_KEY], layer.metadata[FRAME_KEY]
        y, x = frame.to_level0(tuple(world[-2:]))
        text = describe(heatmap, y, x)
        return {**status, "value": text, "coordinates": text or status["coords"]}

    layer.get_status = get_status

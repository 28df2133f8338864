"""What `atlas-wsi view` opens."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from napari import Viewer


def open_viewer(slide: str, result: str | None = None) -> Viewer:
    """Open a slide, and its result over it, with the panels beside it."""
    import napari
    from qtpy.QtCore import QTimer
    from qtpy.QtWidgets import QApplication

    viewer = napari.Viewer(title=f"atlas-wsi: {slide}")
    for path in [slide] if result is None else [slide, result]:
        viewer.open(path, plugin="atlas-wsi")
    if any(layer.affine.affine_matrix[0, 0] < 0 for layer in viewer.layers):
        viewer.scene.camera.orientation2d = ("up", "right")  # north is up
    viewer.canvas.overlays.scale_bar.visible = True
    viewer.fit_to_view()
    QApplication.processEvents()  # the slide is there before the panels are
    panels = ("Predict", "Heatmap", "Coarse scales", "Slide")
    docks = [viewer.window.add_plugin_dock_widget("atlas-wsi", p, tabify=True)[0] for p in panels]
    QTimer.singleShot(0, docks[0 if result is None else 1].raise_)
    return viewer

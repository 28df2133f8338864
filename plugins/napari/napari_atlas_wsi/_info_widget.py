"""The panel with the metadata of a slide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import QSignalBlocker, Qt
from qtpy.QtGui import QImage, QPixmap
from qtpy.QtWidgets import (
    QComboBox,
    QHeaderView,
    QLabel,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from atlas_wsi import AtlasError
from napari_atlas_wsi._layers import SLIDE_KEY

if TYPE_CHECKING:
    from napari import Viewer
    from numpy.typing import NDArray
    from qtpy.QtGui import QCloseEvent

    from atlas_wsi import Slide

PICTURE_PX = 150


class InfoWidget(QWidget):
    """Size, resolution, levels, scanner metadata, label and macro."""

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.slide_box = QComboBox()
        self.table = QTableWidget(0, 2)
        self.table.horizontalHeader().hide()
        self.table.verticalHeader().hide()
        self.table.horizontalHeader().setSectionResizeMode(1, QHeaderView.ResizeMode.Stretch)
        self.pictures = QVBoxLayout()
        self.table.setMinimumHeight(260)
        column = QVBoxLayout(self)
        column.addWidget(self.slide_box)
        column.addWidget(self.table, 1)
        column.addLayout(self.pictures)
        self.slide_box.currentIndexChanged.connect(self.show_slide)
        self.viewer.layers.events.inserted.connect(self.list_slides)
        self.viewer.layers.events.removed.connect(self.list_slides)
        self.list_slides()

    def list_slides(self, _: Any = None) -> None:
        """Offer the slides of the viewer."""
        slides = {
            id(layer.metadata[SLIDE_KEY]): layer.metadata[SLIDE_KEY]
            for layer in self.viewer.layers
            if hasattr(layer.metadata.get(SLIDE_KEY), "meta")
        }
        known = [id(self.slide_box.itemData(k)) for k in range(self.slide_box.count())]
        if known == list(slides):
            return
        with QSignalBlocker(self.slide_box):
            self.slide_box.clear()
            for slide in slides.values():
                self.slide_box.addItem(slide.name, slide)
            self.slide_box.setCurrentIndex(len(slides) - 1)
        self.show_slide()

    def show_slide(self, _: int = 0) -> None:
        """Write the table and draw the pictures of the chosen slide."""
        while self.pictures.count():
            item = self.pictures.takeAt(0)
            if item is not None and item.widget() is not None:
                item.widget().deleteLater()
        slide = self.slide_box.currentData()
        facts = [] if slide is None else facts_of(slide)
        self.table.setRowCount(len(facts))
        for row, texts in enumerate(facts):
            for column, text in enumerate(texts):
                item = QTableWidgetItem(text)
                item.setToolTip(text)
                self.table.setItem(row, column, item)
        for name in () if slide is None else slide.associated:
            try:
                picture = _pixmap(slide.read_associated(name))
            except AtlasError as error:
                self.pictures.addWidget(QLabel(error.message))
                continue
            label = QLabel()
            label.setPixmap(picture)
            label.setToolTip(name)
            self.pictures.addWidget(QLabel(name))
            self.pictures.addWidget(label)

    def closeEvent(self, event: QCloseEvent) -> None:
        """Disconnect from the viewer."""
        self.viewer.layers.events.inserted.disconnect(self.list_slides)
        self.viewer.layers.events.removed.disconnect(self.list_slides)
        super().closeEvent(event)


def facts_of(slide: Slide) -> list[tuple[str, str]]:
    """List the metadata of a slide."""
    rows, cols = slide.shape
    facts = [("file", slide.path), ("size", f"{cols} x {rows} px ({rows * cols / 1e6:.1f} Mpx)")]
    if slide.mpp is not None:
        y, x = slide.mpp
        facts.append(("resolution", f"{x:.4g} x {y:.4g} um/px ({slide.mpp_source})"))
        facts.append(("extent", f"{cols * x / 1000:.4g} x {rows * y / 1000:.4g} mm"))
    if slide.magnification is not None:
        facts.append(("magnification", f"{slide.magnification:g} x"))
    if slide.crs is not None:
        facts.append(("coordinates", slide.crs))
    levels = ", ".join(f"{w} x {h}" for h, w in slide.level_shapes)
    facts += [("levels", levels), ("format", slide.meta.format), ("vendor", slide.vendor)]
    facts += [("channels", f"{slide.n_channels}, {slide.dtype}")]
    facts += [("warning", warning) for warning in slide.meta.warnings]
    return [(name, value) for name, value in facts if value]


def _pixmap(pixels: NDArray[Any]) -> QPixmap:
    rgb = np.ascontiguousarray(pixels[..., :3])
    rows, cols = rgb.shape[:2]
    image = QImage(rgb.data, cols, rows, 3 * cols, QImage.Format.Format_RGB888)
    return QPixmap.fromImage(image).scaled(
        PICTURE_PX,
        PICTURE_PX,
        Qt.AspectRatioMode.KeepAspectRatio,
        Qt.TransformationMode.SmoothTransformation,
    )

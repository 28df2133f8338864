"""The panel that reads a heatmap: classes, hot spots, context, corrections, exports."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Shapes
from napari.utils.notifications import show_error, show_info
from qtpy.QtCore import QSignalBlocker, Qt
from qtpy.QtGui import QColor
from qtpy.QtWidgets import (
    QAbstractItemView,
    QCheckBox,
    QComboBox,
    QFileDialog,
    QGridLayout,
    QGroupBox,
    QHeaderView,
    QLabel,
    QPushButton,
    QSlider,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from atlas_wsi import AtlasError, write_geojson
from napari_atlas_wsi._export import export_areas, export_corrections, export_view
from napari_atlas_wsi._layers import FRAME_KEY, SLIDE_KEY
from napari_atlas_wsi._settings import settings
from napari_atlas_wsi._shown import HotSpot, ShownHeatmap, shown_in

if TYPE_CHECKING:
    from napari import Viewer
    from qtpy.QtGui import QCloseEvent

COLUMNS = ("Class", "Area", "Share", "Not hidden", "Slide")
HOT = 0.5
"""Least probability of a hot spot while no threshold is set."""
EXPORTS = {
    "regions": ("Regions for QuPath", "GeoJSON (*.geojson)"),
    "areas": ("Areas", "Table (*.csv)"),
    "view": ("Image of the view", "Image (*.png)"),
    "corrections": ("Corrections", "GeoJSON (*.geojson)"),
}


class HeatmapWidget(QWidget):
    """Inspect, correct and export a heatmap."""

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.shown: ShownHeatmap | None = None
        self._spots: list[HotSpot] = []
        self._spot = -1
        self.result_box = QComboBox()
        self.table = QTableWidget(0, len(COLUMNS))
        self.table.setHorizontalHeaderLabels(COLUMNS)
        self.table.verticalHeader().hide()
        self.table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        header = self.table.horizontalHeader()
        header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        self.opacity = _slider(round(100 * settings().opacity))
        self.threshold = _slider(0)
        self.threshold_label = QLabel()
        self.previous, self.next = QPushButton("◀"), QPushButton("Next hot spot ▶")
        self.spot_label = QLabel("")
        self.correct_box = QComboBox()
        self.correct_button = QPushButton("Correct by hand")
        self.whole_map = QCheckBox("save the whole map")
        self.whole_map.setToolTip("Otherwise only the cells that you changed.")
        self.annotate_button = QPushButton("New annotation layer")
        self.export_buttons = {kind: QPushButton(f"{EXPORTS[kind][0]} …") for kind in EXPORTS}
        self.save_button = QPushButton("Result folder …")
        self._lay_out()
        self._connect()
        self.list_heatmaps()

    def _lay_out(self) -> None:
        column = QVBoxLayout(self)
        column.addWidget(self.result_box)
        column.addWidget(self.table)
        sliders = [
            [QLabel("Opacity"), self.opacity],
            [QLabel("Hide below"), self.threshold, self.threshold_label],
        ]
        column.addLayout(_grid(sliders))
        walk = _grid([[self.previous, self.next, self.spot_label]])
        walk.setColumnStretch(2, 1)
        column.addLayout(walk)
        export = self.export_buttons
        hand = [
            [self.correct_box, self.correct_button],
            [export["corrections"], self.whole_map],
            [self.annotate_button],
        ]
        files = [[export["regions"], export["areas"]], [export["view"], self.save_button]]
        for title, rows in {"Correct": hand, "Export": files}.items():
            box = QGroupBox(title)
            box.setLayout(_grid(rows))
            column.addWidget(box)
        column.addStretch()

    def _connect(self) -> None:
        self.result_box.currentIndexChanged.connect(self._choose)
        self.table.itemSelectionChanged.connect(self._select_row)
        self.opacity.valueChanged.connect(self._set_opacity)
        self.threshold.valueChanged.connect(self._set_threshold)
        self.next.clicked.connect(lambda: self.walk(1))
        self.previous.clicked.connect(lambda: self.walk(-1))
        self.correct_box.currentIndexChanged.connect(self._paint_with)
        self.correct_button.clicked.connect(self.correct)
        self.annotate_button.clicked.connect(self.annotate)
        for kind, button in self.export_buttons.items():
            button.clicked.connect(lambda _=False, kind=kind: self._ask_and_export(kind))
        self.save_button.clicked.connect(self._ask_and_save)
        self.viewer.layers.events.inserted.connect(self.list_heatmaps)
        self.viewer.layers.events.removed.connect(self.list_heatmaps)

    # which heatmap ----------------------------------------------------------------------------

    def list_heatmaps(self, _: Any = None) -> None:
        """Offer the heatmaps of the viewer; a new one is chosen at once."""
        heatmaps = shown_in(self.viewer)
        known = [self.result_box.itemData(k) for k in range(self.result_box.count())]
        if known == heatmaps:
            return
        new = [shown for shown in heatmaps if shown not in known]
        chosen = new[-1] if new else self.shown
        last = len(heatmaps) - 1
        with QSignalBlocker(self.result_box):
            self.result_box.clear()
            for shown in heatmaps:
                self.result_box.addItem(shown.heatmap.slide.name, shown)
            self.result_box.setCurrentIndex(heatmaps.index(chosen) if chosen in heatmaps else last)
        self._choose()

    def _choose(self, _: int = 0) -> None:
        if self.shown is not None:
            self.shown.changed.disconnect(self.fill)
        self.shown = self.result_box.currentData()
        self.setEnabled(self.shown is not None)
        if self.shown is None:
            self.table.setRowCount(0)
            return
        self.shown.changed.connect(self.fill)
        with QSignalBlocker(self.correct_box):
            self.correct_box.clear()
            self.correct_box.addItems(["nothing", *self.shown.heatmap.classes])
            self.correct_box.setCurrentIndex(self.shown.index + 1)
        with QSignalBlocker(self.threshold):
            self.threshold.setValue(round(100 * self.shown.threshold))
        self.fill()

    def fill(self) -> None:
        """Write the table of classes."""
        assert self.shown is not None
        heatmap = self.shown.heatmap
        areas, above = heatmap.areas(), heatmap.areas(threshold=self.shown.threshold)
        total, unit = sum(areas.values()), {"mm2": "mm²", "m2": "km²"}[heatmap.area_unit]
        per = 1e6 if unit == "km²" else 1.0
        self.threshold_label.setText(f"{self.shown.threshold:.2f}")
        self.table.blockSignals(True)
        self.table.setRowCount(len(heatmap.classes))
        for row, (name, area) in enumerate(areas.items()):
            score = heatmap.scores.get(name)
            texts = (
                name,
                f"{_figures(area / per)} {unit}",
                f"{area / total:.1%}" if total else "",
                f"{_figures(above[name] / per)} {unit}",
                "" if score is None else f"{score:.2f}",
            )
            for column, text in enumerate(texts):
                item = QTableWidgetItem(text)
                if column:
                    side = Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
                    item.setTextAlignment(side)
                else:
                    item.setData(Qt.ItemDataRole.DecorationRole, QColor(heatmap.colors[row]))
                self.table.setItem(row, column, item)
        self.table.selectRow(self.shown.index)
        self.table.blockSignals(False)
        self._spots, self._spot = [], -1
        self.spot_label.clear()

    # looking ----------------------------------------------------------------------------------

    def _select_row(self) -> None:
        row = self.table.currentRow()
        if self.shown is None or row < 0 or row == self.shown.index:
            return
        self.shown.select(row)
        self.correct_box.setCurrentIndex(row + 1)

    def _set_opacity(self, value: int) -> None:
        if self.shown is not None:
            self.shown.set_opacity(value / 100)

    def _set_threshold(self, value: int) -> None:
        if self.shown is not None:
            self.shown.set_threshold(value / 100)

    def walk(self, by: int) -> None:
        """Move the camera to the next hot spot of the chosen class."""
        if self.shown is None:
            return
        if not self._spots:
            self._spots = self.shown.hot_spots(self.shown.threshold or HOT)
            self._spot = -1 if by > 0 else 0
        if not self._spots:
            self.spot_label.setText(f"none at or above {self.shown.threshold or HOT:.2f}")
            return
        self._spot = (self._spot + by) % len(self._spots)
        spot = self._spots[self._spot]
        self.shown.look_at(spot)
        self.spot_label.setText(f"{self._spot + 1} of {len(self._spots)}, mean {spot.mean:.2f}")

    # correcting -------------------------------------------------------------------------------

    def correct(self) -> None:
        """Prepare the class map for painting."""
        layer = None if self.shown is None else self.shown.layer("classes")
        if layer is None:
            show_error("The class map was removed. Open the result again to correct it.")
            return
        layer.visible = True
        layer.mode = "paint"
        layer.brush_size = 3
        layer.selected_label = self.correct_box.currentIndex()
        self.viewer.layers.selection.active = layer

    def _paint_with(self, index: int) -> None:
        layer = None if self.shown is None else self.shown.layer("classes")
        if layer is not None and index >= 0:
            layer.selected_label = index

    def annotate(self) -> Any:
        """Add a layer to draw areas of the chosen class in; saved as GeoJSON."""
        assert self.shown is not None
        heatmap, frame = self.shown.heatmap, self.shown.frame
        name = heatmap.classes[self.shown.index]
        slides = [x.metadata[SLIDE_KEY] for x in self.viewer.layers if SLIDE_KEY in x.metadata]
        own = [slide for slide in slides if slide.path == heatmap.slide.path]
        layer = Shapes(
            name=f"{heatmap.slide.name}: annotations",
            features={"class": np.array([], dtype=object)},
            feature_defaults={"class": name},
            edge_width=2 * self.shown.cell_world() / 16,
            edge_color=heatmap.colors[self.shown.index],
            face_color="transparent",
            metadata={
                SLIDE_KEY: own[0] if own else heatmap.slide,
                FRAME_KEY: frame,
                "atlas_wsi_colors": dict(zip(heatmap.classes, heatmap.colors, strict=True)),
            },
            units=(frame.unit, frame.unit),
            axis_labels=("y", "x"),
            ndim=2,
        )
        self.viewer.add_layer(layer)
        layer.mode = "add_polygon"
        return layer

    # exporting --------------------------------------------------------------------------------

    def export(self, kind: str, path: str | Path) -> None:
        """Write a file; failures are shown as notifications."""
        shown, path = self.shown, Path(path)
        assert shown is not None
        try:
            if kind == "regions":
                write_geojson(shown.heatmap, path)
            elif kind == "areas":
                export_areas(shown.heatmap, path, threshold=shown.threshold)
            elif kind == "view":
                self.viewer.canvas.overlays.scale_bar.visible = True
                picture = self.viewer.screenshot(canvas_only=True, flash=False)
                export_view(shown, picture, path, threshold=shown.threshold)
            else:
                export_corrections(shown, path, whole=self.whole_map.isChecked())
        except AtlasError as error:
            show_error(str(error))
        else:
            show_info(f"Written: {path}")

    def save(self, folder: str | Path) -> None:
        """Write the result as `atlas-wsi predict` does."""
        assert self.shown is not None
        heatmap = self.shown.heatmap
        slides = (x.metadata.get(SLIDE_KEY) for x in self.viewer.layers)
        own = (s for s in slides if hasattr(s, "thumbnail") and s.path == heatmap.slide.path)
        slide = next(own, None)
        try:
            thumbnail = None if slide is None else slide.thumbnail()
            files = heatmap.write(folder, thumbnail=thumbnail)
        except AtlasError as error:
            show_error(str(error))
        else:
            show_info(f"Written: {', '.join(file.name for file in files.values())} in {folder}")

    def _ask_and_export(self, kind: str) -> None:
        title, suffixes = EXPORTS[kind]
        suffix = suffixes.split("*")[1].rstrip(")")
        name = f"{self.shown.heatmap.slide.name}-{kind}{suffix}" if self.shown else ""
        path, _ = QFileDialog.getSaveFileName(self, title, name, suffixes)
        if path:
            self.export(kind, path if path.endswith(suffix) else path + suffix)

    def _ask_and_save(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Folder for results")
        if folder:
            self.save(folder)

    def closeEvent(self, event: QCloseEvent) -> None:
        """Disconnect from the viewer."""
        self.viewer.layers.events.inserted.disconnect(self.list_heatmaps)
        self.viewer.layers.events.removed.disconnect(self.list_heatmaps)
        super().closeEvent(event)


def _figures(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _slider(value: int) -> QSlider:
    slider = QSlider(Qt.Orientation.Horizontal)
    slider.setRange(0, 100)
    slider.setValue(value)
    return slider


def _grid(rows: list[list[QWidget]]) -> QGridLayout:
    grid = QGridLayout()
    for row, widgets in enumerate(rows):
        for column, widget in enumerate(widgets):
            grid.addWidget(widget, row, column)
    return grid

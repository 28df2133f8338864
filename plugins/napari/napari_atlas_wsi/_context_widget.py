"""The panel of the coarse scales: what the cell under the cursor attends to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from napari.utils.notifications import show_error
from qtpy.QtCore import QSignalBlocker, QTimer
from qtpy.QtWidgets import QCheckBox, QComboBox, QFormLayout, QLabel, QWidget

from napari_atlas_wsi._context import AttentionWorker, describe_fractions, show_attention
from napari_atlas_wsi._shown import ShownHeatmap, shown_in

if TYPE_CHECKING:
    from napari import Viewer
    from qtpy.QtGui import QCloseEvent

    from atlas_wsi import AttentionMap

WATCH_MS = 50
NEEDS_RUN = "Predict in this window first: files do not store the coarse scales."


class ContextWidget(QWidget):
    """Show the context that the model used."""

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self._worker: AttentionWorker | None = None
        self._maps: list[AttentionMap] = []
        self._shown: ShownHeatmap | None = None
        self.follow = QCheckBox("Follow the cursor")
        self.scale_box = QComboBox()
        self.fractions = QLabel(NEEDS_RUN)
        self.fractions.setWordWrap(True)
        form = QFormLayout(self)
        form.addRow(self.follow)
        form.addRow("Coarse scale", self.scale_box)
        form.addRow("Attention", self.fractions)
        self.timer = QTimer(self)
        self.timer.setInterval(WATCH_MS)
        self.timer.timeout.connect(self.watch)
        self.follow.toggled.connect(self._toggle)
        self.scale_box.currentIndexChanged.connect(self._draw)

    def _toggle(self, on: bool) -> None:
        if on:
            self.viewer.mouse_move_callbacks.append(self._move)
            self.timer.start()
        else:
            self.viewer.mouse_move_callbacks.remove(self._move)
            self.timer.stop()

    def _move(self, _: Any, event: Any) -> None:
        self.request(tuple(event.position[-2:]))

    def request(self, world: tuple[float, float]) -> None:
        """Request what the cell at `(y, x)` in the viewer attends to; drawn when it is computed."""
        live = [s for s in shown_in(self.viewer) if s.heatmap.context is not None]
        if not live:
            self.fractions.setText(NEEDS_RUN)
            return
        self._shown = live[-1]
        if self._worker is None or self._worker.heatmap is not self._shown.heatmap:
            self._worker = AttentionWorker(self._shown.heatmap)
        self._worker.request(*self._shown.frame.to_level0(world))

    def watch(self) -> None:
        """Draw the newest maps."""
        if self._worker is None:
            return
        if self._worker.error is not None:
            error, self._worker = self._worker.error, None
            show_error(f"The attention cannot be computed: {error}")
            return
        maps = self._worker.take()
        if maps is None:
            return
        self._maps = maps
        if not maps:
            self.fractions.setText("Nothing was predicted here, or the slide has one scale.")
            return
        self.fractions.setText(describe_fractions(maps))
        if self.scale_box.count() != len(maps):
            names = [f"{k}: {m.grid.step_px[0]:.0f} px per token" for k, m in enumerate(maps, 1)]
            with QSignalBlocker(self.scale_box):
                self.scale_box.clear()
                self.scale_box.addItems(names)
        self._draw()

    def _draw(self, _: int = 0) -> None:
        index = self.scale_box.currentIndex()
        if self._shown is None or not 0 <= index < len(self._maps):
            return
        show_attention(
            self.viewer,
            self._maps[index],
            self._shown.frame,
            scale=index + 1,
            slide=self._shown.heatmap.slide.name,
        )

    def closeEvent(self, event: QCloseEvent) -> None:
        """Disconnect from the viewer."""
        self.follow.setChecked(False)
        super().closeEvent(event)

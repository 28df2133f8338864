"""The panel of the coarse scales: what the cell under the cursor attends to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from napari.utils.notifications import show_error
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QCheckBox, QComboBox, QFormLayout, QLabel, QWidget

from napari_atlas_wsi._context import Asker, shares_of, show_attention
from napari_atlas_wsi._shown import ShownHeatmap, shown_in

if TYPE_CHECKING:
    from napari import Viewer
    from qtpy.QtGui import QCloseEvent

    from atlas_wsi import AttentionMap

WATCH_MS = 50
NEEDS_RUN = "Predict in this window first: files do not keep the coarse scales."


class ContextWidget(QWidget):
    """See the context that the model used."""

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self._asker: Asker | None = None
        self._maps: list[AttentionMap] = []
        self._shown: ShownHeatmap | None = None
        self.follow = QCheckBox("Follow the cursor")
        self.scale_box = QComboBox()
        self.shares = QLabel(NEEDS_RUN)
        self.shares.setWordWrap(True)
        form = QFormLayout(self)
        form.addRow(self.follow)
        form.addRow("Coarse scale", self.scale_box)
        form.addRow("Attention", self.shares)
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
        self.ask(tuple(event.position[-2:]))

    def ask(self, world: tuple[float, float]) -> None:
        """Ask what the cell at a place attends to; the answer is drawn when it is there.

        `world`: Position `(y, x)` in the viewer.
        """
        live = [s for s in shown_in(self.viewer) if s.heatmap.context is not None]
        if not live:
            self.shares.setText(NEEDS_RUN)
            return
        if self._shown is not live[-1] or self._asker is None:
            self._shown, self._asker = live[-1], Asker(live[-1].heatmap)
        elif not self._asker.asks(live[-1].heatmap):
            self._asker = Asker(live[-1].heatmap)
        self._asker.ask(*self._shown.frame.to_level0(world))

    def watch(self) -> None:
        """Draw the newest answer."""
        if self._asker is None:
            return
        if self._asker.error is not None:
            error, self._asker = self._asker.error, None
            show_error(f"The attention cannot be computed: {error}")
            return
        maps = self._asker.take()
        if maps is None:
            return
        self._maps = maps
        if not maps:
            self.shares.setText("Nothing was predicted here, or the slide has one scale.")
            return
        self.shares.setText(shares_of(maps))
        if self.scale_box.count() != len(maps):
            names = [f"{k}: {m.grid.step_px[0]:.0f} px a token" for k, m in enumerate(maps, 1)]
            self.scale_box.blockSignals(True)
            self.scale_box.clear()
            self.scale_box.addItems(names)
            self.scale_box.blockSignals(False)
        self._draw()

    def _draw(self, _: int = 0) -> None:
        place = self.scale_box.currentIndex()
        if self._shown is None or not 0 <= place < len(self._maps):
            return
        show_attention(
            self.viewer,
            self._maps[place],
            self._shown.frame,
            scale=place + 1,
            slide=self._shown.heatmap.slide.name,
        )

    def closeEvent(self, event: QCloseEvent) -> None:
        """Let go of the viewer."""
        self.follow.setChecked(False)
        super().closeEvent(event)

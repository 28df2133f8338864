"""The panel that predicts."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari.layers import Shapes
from napari.utils.notifications import show_error
from qtpy.QtCore import QSignalBlocker, QTimer
from qtpy.QtWidgets import (
    QComboBox,
    QDoubleSpinBox,
    QFileDialog,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QProgressBar,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from atlas_wsi import AtlasError
from napari_atlas_wsi._job import PredictJob
from napari_atlas_wsi._layers import FRAME_KEY, SLIDE_KEY
from napari_atlas_wsi._scope import SCOPES, areas_of_shapes, areas_of_view
from napari_atlas_wsi._settings import settings
from napari_atlas_wsi._shown import ShownHeatmap

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari import Viewer
    from qtpy.QtGui import QCloseEvent

    from atlas_wsi import Heatmap, Slide

AUTO_MODEL = "default for the slide"
OTHER_MODEL = "a file …"
READ_MS = 50
"""How often the panel looks whether what it reads in a thread has come."""


class PredictWidget(QWidget):
    """Choose a slide, a model and an area; watch the heatmap grow."""

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.job: PredictJob | None = None
        self.shown: ShownHeatmap | None = None
        chosen = settings()
        self.slide_box = QComboBox()
        self.model_box = QComboBox()
        self.model_box.addItem(AUTO_MODEL, None)
        self.model_box.addItem(OTHER_MODEL, OTHER_MODEL)
        self.card = QLabel()
        self.card.setWordWrap(True)
        self.mpp = _number(0.0, 1e9, 0.05, decimals=4, special="as the file says")
        self.scale = QLineEdit()
        self.scale.setPlaceholderText("as the file says; else 0,3000")
        self.scope_box = QComboBox()
        self.scope_box.addItems(SCOPES)
        self.shapes_box = QComboBox()
        self.device = QComboBox()
        self.device.setEditable(True)
        self.device.addItems(["auto", "cpu", "cuda", "mps"])
        self.device.setCurrentText(chosen.device)
        self.memory = _number(0.25, 4096.0, 0.5, suffix=" GB")
        self.memory.setValue(chosen.memory_gb)
        self.threshold = _number(0.0, 1.0, 0.05)
        self.run_button = QPushButton("Predict")
        self.cancel_button = QPushButton("Cancel")
        self.cancel_button.setEnabled(False)
        self.bar = QProgressBar()
        self.status = QLabel("")
        self.status.setWordWrap(True)
        self._lay_out()
        self.timer = QTimer(self)
        self.timer.setInterval(int(1000 / max(0.5, chosen.refresh_hz)))
        self.timer.timeout.connect(self.watch)
        self.run_button.clicked.connect(self.start)
        self.cancel_button.clicked.connect(self.cancel)
        self.model_box.activated.connect(self._choose_model)
        self.model_box.currentIndexChanged.connect(self.show_card)
        self.slide_box.currentIndexChanged.connect(self.show_card)
        self.scope_box.currentTextChanged.connect(self._show_shapes_box)
        self.viewer.layers.events.inserted.connect(self.list_layers)
        self.viewer.layers.events.removed.connect(self.list_layers)
        self._show_shapes_box()
        # torch takes seconds to import: not in the thread that draws. Nor does the thread touch Qt:
        # the window may be closed, and its objects deleted, before it ends.
        self._reader = ThreadPoolExecutor(1, "atlas-wsi-read")
        self._reads: list[tuple[Future[Any], Callable[[Any], None]]] = []
        self._read_timer = QTimer(self)
        self._read_timer.setInterval(READ_MS)
        self._read_timer.timeout.connect(self._take_reads)
        self._read(self._offer_models, _shipped)
        self.list_layers()

    def _lay_out(self) -> None:
        form = QFormLayout()
        form.addRow("Slide", self.slide_box)
        form.addRow("Model", self.model_box)
        form.addRow("", self.card)
        form.addRow("Resolution (um/px)", self.mpp)
        form.addRow("Black, white", self.scale)
        form.addRow("Where", self.scope_box)
        self._shapes_label = QLabel("Drawn in")
        form.addRow(self._shapes_label, self.shapes_box)
        form.addRow("Device", self.device)
        form.addRow("Memory", self.memory)
        form.addRow("Hide below", self.threshold)
        buttons = QHBoxLayout()
        buttons.addWidget(self.run_button)
        buttons.addWidget(self.cancel_button)
        column = QVBoxLayout(self)
        column.addLayout(form)
        column.addLayout(buttons)
        column.addWidget(self.bar)
        column.addWidget(self.status)
        column.addStretch()

    # choosing ---------------------------------------------------------------------------------

    def list_layers(self, _: Any = None) -> None:
        """Offer the slides and the drawn layers of the viewer."""
        found = [x.metadata[SLIDE_KEY] for x in self.viewer.layers if SLIDE_KEY in x.metadata]
        slides = {id(slide): slide for slide in found}
        _offer(self.slide_box, [(slide.name, slide) for slide in slides.values()])
        drawn = [(x.name, x) for x in self.viewer.layers if isinstance(x, Shapes)]
        _offer(self.shapes_box, drawn)
        self.run_button.setEnabled(bool(slides) and not self.is_running)
        if not slides:
            self.status.setText("Open a slide or a scene first.")

    @property
    def slide(self) -> Slide | None:
        """The chosen slide."""
        chosen: Slide | None = self.slide_box.currentData()
        return chosen

    @property
    def model(self) -> str | None:
        """Name or file of the chosen model; None takes the default for the slide."""
        chosen = self.model_box.currentData()
        return None if chosen == OTHER_MODEL else chosen

    def _choose_model(self, index: int) -> None:
        if self.model_box.itemData(index) != OTHER_MODEL:
            return
        path, _ = QFileDialog.getOpenFileName(self, "Model", "", "Models (*.safetensors)")
        self.model_box.setCurrentIndex(0)
        if path:
            self.add_model(path)

    def add_model(self, path: str) -> None:
        """Offer a model file, and choose it."""
        self.model_box.insertItem(1, Path(path).name, path)
        self.model_box.setCurrentIndex(1)

    def _offer_models(self, models: dict[str, str]) -> None:
        for index, (name, path) in enumerate(models.items(), 1):
            self.model_box.insertItem(index, name, path)

    def show_card(self, _: int = 0) -> None:
        """Show the card of the chosen model, once it is read."""
        self.card.clear()
        if self.slide is not None and self.model_box.currentData() != OTHER_MODEL:
            self._read(self._write_card, _card, self.slide, self.model)

    def _read(self, then: Callable[[Any], None], read: Callable[..., Any], *args: Any) -> None:
        """Read something in a thread, and hand it to `then` in this one."""
        self._reads.append((self._reader.submit(read, *args), then))
        self._read_timer.start()

    def _take_reads(self) -> None:
        while self._reads and self._reads[0][0].done():
            future, then = self._reads.pop(0)
            then(future.result())
        if not self._reads:
            self._read_timer.stop()

    def _write_card(self, read: tuple[Any, Any, Any, str]) -> None:
        slide, model, card, reason = read
        if (slide, model) != (self.slide, self.model):
            return  # the choice has changed
        if card is None:
            self.card.setText(reason)
            return
        self.card.setText(
            f"<b>{card.name}</b> ({reason})<br>{', '.join(card.class_names)}<br>"
            f"sees {card.mpp:g} um/px; license {card.license}"
        )
        self.card.setToolTip("\n\n".join(t for t in (card.data, card.split, card.limits) if t))

    def _show_shapes_box(self, _: str = "") -> None:
        needed = self.scope_box.currentText() == "drawn areas"
        self.shapes_box.setVisible(needed)
        self._shapes_label.setVisible(needed)

    # running ----------------------------------------------------------------------------------

    @property
    def is_running(self) -> bool:
        """Whether a prediction is running."""
        return self.job is not None

    def start(self) -> None:
        """Predict what is chosen; a stopped prediction resumes."""
        try:
            self.job = self._make_job()
        except AtlasError as error:
            show_error(str(error))
            return
        self.shown = None
        self.job.start()
        self.run_button.setEnabled(False)
        self.cancel_button.setEnabled(True)
        self.bar.setRange(0, 0)
        self.timer.start()

    def _make_job(self) -> PredictJob:
        slide, scope = self.slide, SCOPES[self.scope_box.currentIndex()]
        if slide is None:
            raise AtlasError("No slide is open.", hint="Open one with File > Open.")
        frame, areas = self._frame(slide), None
        if scope == "current view":
            areas = areas_of_view(self.viewer, frame)
        elif scope == "drawn areas":
            layer = self.shapes_box.currentData()
            areas = [] if layer is None else areas_of_shapes(layer, frame)
            if not areas:
                raise AtlasError(
                    "Nothing is drawn.",
                    hint="Add a Shapes layer and draw a rectangle or a polygon on the slide.",
                )
        return PredictJob(
            slide,
            opening=self._opening(),
            is_whole=scope == "whole slide",
            model=self.model,
            roi=areas,
            device=self.device.currentText(),
            memory=f"{self.memory.value()}GB",  # fixed: a resumed job divides the slide as before
        )

    def _opening(self) -> dict[str, Any]:
        opening: dict[str, Any] = {"mpp": self.mpp.value()} if self.mpp.value() else {}
        if self.scale.text().strip():
            try:
                low, high = map(float, self.scale.text().split(","))
            except ValueError as error:
                raise AtlasError(
                    f"Black, white is '{self.scale.text()}'; expected two numbers such as 0,3000."
                ) from error
            opening["scale"] = low, high
        return opening

    def _frame(self, slide: Slide) -> Any:
        return next(
            x.metadata[FRAME_KEY] for x in self.viewer.layers if x.metadata.get(SLIDE_KEY) is slide
        )

    def cancel(self) -> None:
        """Stop the prediction; its encoded windows are kept for the next one."""
        if self.job is not None:
            self.job.cancel()
            self.cancel_button.setEnabled(False)
            self.status.setText("Stopping …")

    def watch(self) -> None:
        """Draw new cells, and finish when the job has ended."""
        job = self.job
        if job is None:
            return
        has_ended = not job.is_running
        dirty = job.take_dirty()
        if job.partial is not None and dirty is not None:
            self._show(job, job.partial).refresh(dirty)
        self.bar.setRange(0, job.total)
        self.bar.setValue(job.done)
        if has_ended:
            self._end(job)
        elif self.cancel_button.isEnabled():
            left = "" if job.left_s is None else f", {_clock(job.left_s)} left"
            self.status.setText(f"{job.step}: {job.done} of {job.total}{left}")

    def _show(self, job: PredictJob, heatmap: Heatmap) -> ShownHeatmap:
        if self.shown is None:
            frame = self._frame(job.slide)
            self.shown = ShownHeatmap(self.viewer, heatmap, frame=frame, index=0)
            self.shown.set_opacity(settings().opacity)
            self.shown.set_threshold(self.threshold.value())
        return self.shown

    def _end(self, job: PredictJob) -> None:
        self.timer.stop()
        self.job = None
        self.run_button.setEnabled(True)
        self.cancel_button.setEnabled(False)
        self.bar.setRange(0, 1)
        self.bar.setValue(0)
        if job.result is not None:
            self._show(job, job.result).take(job.result)
            self.bar.setValue(1)
            done = f"Done in {_clock(job.result.run.wall_s)}."
            if job.result.run.familiarity is not None:
                done += f" Familiarity: {job.result.run.familiarity:.0%}."
            self.status.setText("\n".join([done, *job.result.run.warnings]))
        elif job.was_cancelled:
            self.status.setText("Stopped. 'Predict' resumes it.")
        elif isinstance(job.error, AtlasError):
            self.status.setText(str(job.error))
            show_error(str(job.error))
        else:
            self.status.setText(f"{type(job.error).__name__}: {job.error}")
            assert job.error is not None
            raise job.error  # napari shows it with its traceback

    def closeEvent(self, event: QCloseEvent) -> None:
        """Stop with the panel."""
        if self.job is not None:
            self.job.cancel()
            self.job.wait(5)
        self.timer.stop()
        self._read_timer.stop()
        self._reader.shutdown(wait=False, cancel_futures=True)
        self.viewer.layers.events.inserted.disconnect(self.list_layers)
        self.viewer.layers.events.removed.disconnect(self.list_layers)
        super().closeEvent(event)


def _shipped() -> dict[str, str]:
    from atlas_wsi import shipped_models

    return {name: str(path) for name, path in shipped_models().items()}


def _card(slide: Slide, model: str | None) -> tuple[Any, Any, Any, str]:
    from atlas_wsi import choose_model

    try:
        chosen, reason = choose_model(slide, model)
    except AtlasError as error:
        return slide, model, None, str(error)
    return slide, model, chosen.card, reason


def _number(
    low: float, high: float, step: float, *, decimals: int = 2, special: str = "", suffix: str = ""
) -> QDoubleSpinBox:
    box = QDoubleSpinBox()
    box.setDecimals(decimals)
    box.setRange(low, high)
    box.setSingleStep(step)
    box.setSpecialValueText(special)
    box.setSuffix(suffix)
    return box


def _offer(box: QComboBox, entries: list[tuple[str, Any]]) -> None:
    """Refill a box and keep the choice."""
    chosen = box.currentData()
    matches = [k for k, (_, value) in enumerate(entries) if value is chosen]
    with QSignalBlocker(box):
        box.clear()
        for name, value in entries:
            box.addItem(name, value)
        box.setCurrentIndex(matches[0] if matches else len(entries) - 1)
    if not matches:
        box.currentIndexChanged.emit(box.currentIndex())


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes else f"{rest} s"

"""A prediction in a thread, watched from the thread of the window."""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from typing import TYPE_CHECKING, Any

import platformdirs

from atlas_wsi import Box, CancelToken, open_slide
from napari_atlas_wsi._scope import whole_mask

if TYPE_CHECKING:
    from pathlib import Path

    from atlas_wsi import Heatmap, Slide

KEEP_WORK_S = 14 * 24 * 3600
"""Seconds that the encoded windows of a stopped job are kept."""
_UNSTOPPABLE = ("open", "find tissue")


class PredictJob:
    """A prediction that runs in a thread."""

    def __init__(
        self, slide: Slide, *, opening: dict[str, Any], is_whole: bool, **options: Any
    ) -> None:
        """Take the slide of a layer; `opening`: what its file does not state, as `open_slide`."""
        self.slide = slide
        self._opening, self._is_whole, self._options = opening, is_whole, options
        self.error: BaseException | None = None
        self.result: Heatmap | None = None
        self.partial: Heatmap | None = None
        """The heatmap so far; changes while the job runs."""
        self.step, self.done, self.total = "open", 0, 0
        self._started = time.monotonic()
        self._cancel = CancelToken()
        self._lock = threading.Lock()
        self._dirty: Box | None = None
        self._thread = threading.Thread(target=self._run, name="atlas-wsi-predict", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def cancel(self) -> None:
        """Stop the job; its encoded windows are kept for the next first."""
        self._cancel.cancel()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the job ends."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def is_running(self) -> bool:
        """Whether there is still something to wait for."""
        # the thread of a job cancelled while it looks for tissue ends by itself, seconds later
        is_abandoned = self._cancel.is_cancelled and self.step in _UNSTOPPABLE
        return self._thread.is_alive() and not is_abandoned

    @property
    def was_cancelled(self) -> bool:
        """Whether the job was cancelled before it had a result."""
        return self._cancel.is_cancelled and self.result is None

    @property
    def left_s(self) -> float | None:
        """Seconds left of this step at its own speed; None while unknown."""
        if not self.total or not 0 < self.done < self.total:
            return None
        return (time.monotonic() - self._started) * (self.total - self.done) / self.done

    def take_dirty(self) -> Box | None:
        """Return the cells that changed since the last call."""
        with self._lock:
            box, self._dirty = self._dirty, None
        return box

    def _run(self) -> None:
        try:
            self.result = self._predict()
        except BaseException as error:  # noqa: BLE001 - shown in the window
            self.error = error

    def _predict(self) -> Heatmap:
        from atlas_wsi import predict_to_folder  # imports torch, which takes seconds

        # a slide that is opened here stays open as long as the result, whose context reads it
        slide = self.slide
        if self._opening:
            read_as: dict[str, Any] = {
                "image": slide.image,
                "allow_truncated": slide.allow_truncated,
            }
            slide = open_slide(slide.path, **read_as, **self._opening)
        slide.require_mpp()
        self._report("find tissue", 0, 1)
        return predict_to_folder(
            slide,
            None,
            tissue=whole_mask(slide) if self._is_whole else None,
            work=work_folder(slide),
            preview=self._preview,
            context=True,
            progress=self._report,
            cancel=self._cancel,
            **self._options,
        ).heatmap

    def _report(self, step: str, done: int, total: int) -> None:
        if step != self.step:
            self._started = time.monotonic()
        self.step, self.done, self.total = step, done, total
        self._cancel.raise_if_cancelled()

    def _preview(self, heatmap: Heatmap, box: Box) -> None:
        self.partial = heatmap
        with self._lock:
            self._dirty = box if self._dirty is None else _around(self._dirty, box)
        self._cancel.raise_if_cancelled()


def work_folder(slide: Any) -> Path:
    """Return the folder for a slide's encoded windows between two jobs."""
    root = platformdirs.user_cache_path("atlas-wsi") / "napari"
    root.mkdir(parents=True, exist_ok=True)
    for old in root.iterdir():
        if time.time() - old.stat().st_mtime > KEEP_WORK_S:
            shutil.rmtree(old, ignore_errors=True)
    return root / hashlib.sha256(slide.path.encode()).hexdigest()[:24]


def _around(first: Box, second: Box) -> Box:
    row, col = min(first.row, second.row), min(first.col, second.col)
    return Box(
        row=row,
        col=col,
        rows=max(first.row_end, second.row_end) - row,
        cols=max(first.col_end, second.col_end) - col,
    )

"""A prediction in a thread, watched from the thread of the window."""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import platformdirs

from atlas_wsi import Box, CancelToken, open_slide
from napari_atlas_wsi._scope import Scope, mask_of

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from atlas_wsi import Heatmap, Slide

KEEP_WORK_S = 14 * 24 * 3600
"""Seconds that what a stopped run encoded is kept."""
_UNSTOPPABLE = ("open", "find tissue")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to predict."""

    slide: Slide
    """The slide of the layer."""
    model: str | None
    """Name or file; None takes the default for the slide."""
    scope: Scope = "tissue"
    """Where."""
    areas: list[NDArray[np.float64]] | None = None
    """Level-0 areas `(n, 2)` of `(y, x)`, for view and drawn areas."""
    mpp: float | None = None
    """Micrometers a pixel of the slide, in place of what the file says."""
    device: str = "auto"
    """As `atlas_wsi.predict` takes it."""
    memory: str = "1GB"
    """Fixed, so that a run that is taken up again cuts the slide alike."""


class Run:
    """A prediction that goes on in a thread."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.error: BaseException | None = None
        self.result: Heatmap | None = None
        self.partial: Heatmap | None = None
        """What is known so far; changes while the run goes on."""
        self.step, self.done, self.total = "open", 0, 0
        self._began = time.monotonic()
        self._cancel = CancelToken()
        self._lock = threading.Lock()
        self._dirty: Box | None = None
        self._thread = threading.Thread(target=self._run, name="atlas-wsi-predict", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def cancel(self) -> None:
        """Ask the run to stop; what it encoded is kept for the next one."""
        self._cancel.cancel()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the run ends."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def is_running(self) -> bool:
        """Whether there is still something to wait for.

        A run that was told to stop while it looks for tissue is let go: its thread ends by itself,
        seconds later, without a result.
        """
        let_go = self._cancel.is_cancelled and self.step in _UNSTOPPABLE
        return self._thread.is_alive() and not let_go

    @property
    def was_cancelled(self) -> bool:
        """Whether the run ended because it was asked to."""
        return self._cancel.is_cancelled and self.result is None

    @property
    def left_s(self) -> float | None:
        """Seconds that this step will take at its own pace; None while unknown."""
        if not self.total or not 0 < self.done < self.total:
            return None
        return (time.monotonic() - self._began) * (self.total - self.done) / self.done

    def take_dirty(self) -> Box | None:
        """Return the cells that changed since the last call."""
        with self._lock:
            box, self._dirty = self._dirty, None
        return box

    def _run(self) -> None:
        try:
            self.result = self._predict()
        except BaseException as error:  # noqa: BLE001 - told in the window, by whoever watches
            self.error = error

    def _predict(self) -> Heatmap:
        from atlas_wsi import predict  # brings torch, which takes seconds

        job = self.job
        # one opened anew stays open as long as the result, whose context reads it
        slide = open_slide(job.slide.path, mpp=job.mpp) if job.mpp else job.slide
        slide.require_mpp()
        self._report("find tissue", 0, 1)
        mask = mask_of(slide, job.scope, job.areas)
        self._cancel.raise_if_cancelled()
        return predict(
            slide,
            job.model,
            tissue=mask,
            memory=job.memory,
            device=job.device,
            work=work_folder(slide),
            preview=self._preview,
            context=True,
            progress=self._report,
            cancel=self._cancel,
        )

    def _report(self, what: str, done: int, total: int) -> None:
        if what != self.step:
            self._began = time.monotonic()
        self.step, self.done, self.total = what, done, total
        self._cancel.raise_if_cancelled()

    def _preview(self, heatmap: Heatmap, box: Box) -> None:
        self.partial = heatmap
        with self._lock:
            self._dirty = box if self._dirty is None else _around(self._dirty, box)
        self._cancel.raise_if_cancelled()


def work_folder(slide: Any) -> Path:
    """Return where a slide's encoded windows are kept between a run and the next."""
    root = platformdirs.user_cache_path("atlas-wsi") / "napari"
    root.mkdir(parents=True, exist_ok=True)
    for old in root.iterdir():
        if time.time() - old.stat().st_mtime > KEEP_WORK_S:
            shutil.rmtree(old, ignore_errors=True)
    return root / hashlib.sha256(slide.path.encode()).hexdigest()[:24]


def _around(one: Box, other: Box) -> Box:
    row, col = min(one.row, other.row), min(one.col, other.col)
    return Box(
        row=row,
        col=col,
        rows=max(one.row_end, other.row_end) - row,
        cols=max(one.col_end, other.col_end) - col,
    )

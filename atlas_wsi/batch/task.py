"""One slide on one worker."""

from __future__ import annotations

import glob
import logging
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from distributed import get_worker

from atlas_wsi.batch.journal import Row, now
from atlas_wsi.batch.lease import take, worker_name
from atlas_wsi.batch.options import open_request
from atlas_wsi.batch.slide_shards import shards_over_workers
from atlas_wsi.batch.worker import BatchWorker, plugin_name
from atlas_wsi.errors import (
    AtlasError,
    Cancelled,
    DiskFullError,
    OutputNotWritableError,
    UnreachableSlideError,
)
from atlas_wsi.files import DISK_FULL
from atlas_wsi.heatmap.result import SUMMARY, read_summary
from atlas_wsi.inference.predict import choose_model
from atlas_wsi.inference.provenance import peak_memory_bytes
from atlas_wsi.inference.slide_run import predict_to_folder
from atlas_wsi.models.tile_classifier import TileClassifier
from atlas_wsi.progress import CancelToken

if TYPE_CHECKING:
    from atlas_wsi.batch.journal import SlideRequest
    from atlas_wsi.batch.lease import Lease
    from atlas_wsi.heatmap.records import Summary
    from atlas_wsi.slides.slide import Slide

_log = logging.getLogger(__name__)

_TRANSIENT = (OutputNotWritableError, UnreachableSlideError)


class _TooLargeError(Exception):
    """The slide is to be distributed over all workers, when they are idle."""


class Outcome(NamedTuple):
    """What a task reports to its launcher; everything else is on disk."""

    kind: str
    """``"done"``, ``"failed"``, ``"again"`` (an attempt failed, others remain), ``"busy"`` (another
    worker holds the slide), ``"large"`` (to be distributed over all workers), ``"stopped"``, or
    ``"full"`` (the disk)."""
    message: str = ""
    """Of the error, for ``"again"`` and ``"full"``."""


def run_slide(run: str, index: int, *, sharded: bool = False) -> Outcome:
    """Predict one slide: the task that is sent to workers."""
    worker = get_worker().plugins[plugin_name(run)]
    assert isinstance(worker, BatchWorker)
    with worker.one_at_a_time:
        return do_slide(worker, worker.slides[index], sharded=sharded)


def do_slide(worker: BatchWorker, request: SlideRequest, *, sharded: bool = False) -> Outcome:
    """Predict one slide here, unless it has ended or another worker holds it."""
    journal = worker.journal
    row = journal.row(request.name)
    if row is not None:
        return Outcome(row.state)
    if journal.stop_file(worker.run).exists():
        return Outcome("stopped")
    timeout_s = worker.run_options.heartbeat_timeout_s
    try:
        lease = take(
            journal.leases_folder, request.name, run=worker.run, heartbeat_timeout_s=timeout_s
        )
    except DiskFullError as error:
        return Outcome("full", str(error))
    if lease is None:
        return Outcome("busy")
    try:
        row = journal.row(request.name)  # the last holder may have ended between the two reads
        if row is None:
            row = _SlideTask(worker, request, lease, sharded=sharded).row()
            if not lease.is_mine:
                return Outcome("busy")
            journal.write_row(row)
    except Exception as error:  # noqa: BLE001 - one bad slide must not stop the others
        return _give_back(lease, error)
    shutil.rmtree(journal.work_folder / request.name, ignore_errors=True)
    lease.settle()
    return Outcome(row.state)


def _give_back(lease: Lease, error: Exception) -> Outcome:
    """Release a slide for another attempt."""
    kind = "again"
    if isinstance(error, _TooLargeError):
        kind = "large"
    elif isinstance(error, Cancelled):
        kind = "stopped" if lease.is_mine else "busy"
    elif _is_full(error):
        kind = "full"
    with suppress(OSError):  # on a full disk the lease cannot be written; it will expire
        lease.give_back(error=type(error).__name__, reason=_reason(error), counts=kind == "again")
    return Outcome(kind, _reason(error))


def _is_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, DiskFullError):
            return True
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            return True
        error = error.__cause__
    return False


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, AtlasError) else f"{type(error).__name__}: {error}"


class _SlideTask:
    """An attempt at a slide whose lease is held."""

    def __init__(
        self, worker: BatchWorker, request: SlideRequest, lease: Lease, *, sharded: bool
    ) -> None:
        with suppress(OSError):  # reset the peak of memory, where the system can (Linux)
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        self.worker, self.request, self.lease, self.sharded = worker, request, lease, sharded
        self.failed = [attempt for attempt in lease.past if attempt.failed]
        """Earlier attempts that may have failed because of the slide."""
        self.started = time.perf_counter()

    def row(self) -> Row:
        """Make the result, or record why there is none."""
        n_failed, limit = len(self.failed), self.worker.run_options.max_attempts
        if n_failed >= limit:
            last = self.failed[-1]
            return self._row(
                state="failed",
                error=(last.holder and last.holder.error) or "WorkerDied",
                reason=f"Given up after {n_failed} attempts; the last: {last.why}",
                attempts=n_failed,
            )
        # what a dead worker was writing; no other process writes while the lease is held
        for partial in self.worker.journal.out.glob(f".{glob.escape(self.request.name)}.partial-*"):
            shutil.rmtree(partial, ignore_errors=True)
        cancel = self.worker.cancel = CancelToken()
        with self.lease.held(cancel.cancel):
            try:
                return self._done(self._summary(cancel))
            except Exception as error:
                if isinstance(error, Cancelled | _TooLargeError) or _is_full(error):
                    raise
                is_final = isinstance(error, AtlasError) and not isinstance(error, _TRANSIENT)
                if not is_final and n_failed + 1 < limit:
                    raise
                if not is_final:
                    _log.warning("%s is given up", self.request.name, exc_info=error)
                return self._row(state="failed", error=type(error).__name__, reason=_reason(error))

    def _summary(self, cancel: CancelToken) -> Summary:
        request, options, journal = self.request, self.worker.options, self.worker.journal
        with open_request(request, options) as slide:
            if not self.sharded and self._is_too_large(slide):
                raise _TooLargeError
            predict_to_folder(
                slide,
                journal.out,
                name=request.name,
                **options.model_dump(exclude={"distribute_above"}),
                device=self.worker.run_options.device,
                repair=True,
                work=journal.work_folder / request.name,
                shards=shards_over_workers(self.worker, request) if self.sharded else None,
                cancel=cancel,
            )
        return read_summary(journal.out / request.name)

    def _is_too_large(self, slide: Slide) -> bool:
        """Return whether a slide without a result is to be distributed."""
        options = self.worker.options
        limit = options.distribute_above
        if limit is None or (self.worker.journal.out / self.request.name / SUMMARY).is_file():
            return False
        model, _ = choose_model(slide, options.model, trust=options.trust_model)
        mpp = slide.require_mpp()
        rows, cols = (n * um / model.card.mpp for n, um in zip(slide.shape, mpp, strict=True))
        return rows * cols / 1e9 > limit and not isinstance(model, TileClassifier)

    def _done(self, summary: Summary) -> Row:
        run, slide = summary.run, summary.slide
        return self._row(
            state="done",
            result_bytes=sum(file.bytes for file in summary.files.values()),
            shape=slide.shape,
            mpp=slide.mpp,
            mpp_source=slide.mpp_source,
            mpp_used=run.mpp_used,
            model=run.model.name,
            model_sha256=run.model.sha256,
            windows=run.parameters.get("windows", 0),
            tissue_fraction=summary.tissue_fraction,
            area_unit=summary.area_unit,
            predicted_area=summary.predicted_area,
            areas={entry.name: entry.area for entry in summary.classes},
            scores={
                entry.name: entry.score for entry in summary.classes if entry.score is not None
            },
            familiarity=run.familiarity,
            unreadable_fraction=run.unreadable_fraction,
            is_incomplete=run.is_incomplete,
            n_unreadable=run.n_unreadable,
            warnings=(*summary.warnings, *self._warnings()),
        )

    def _warnings(self) -> tuple[str, ...]:
        return tuple(f"Attempt {one.number} ended early: {one.why}" for one in self.failed)

    def _row(self, **fields: object) -> Row:
        source = Path(self.request.source)
        common: dict[str, object] = {
            "name": self.request.name,
            "source": self.request.source,
            "attempts": len(self.failed) + 1,
            "worker": worker_name(),
            "started": self.lease.holder.started,
            "ended": now(),
            "wall_s": round(time.perf_counter() - self.started, 3),
            "peak_memory_bytes": peak_memory_bytes(),
            "slide_bytes": source.stat().st_size if source.is_file() else 0,
            "warnings": self._warnings(),
        }
        return Row.model_validate(common | fields)

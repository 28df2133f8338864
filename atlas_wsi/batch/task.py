"""One slide on one worker."""

from __future__ import annotations

import asyncio
import glob
import logging
import multiprocessing
import shutil
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from distributed import WorkerPlugin, get_worker

from atlas_wsi.batch.journal import Journal, Row, now
from atlas_wsi.batch.lease import take, worker_name
from atlas_wsi.batch.split import spread_over_workers
from atlas_wsi.errors import (
    AtlasError,
    Cancelled,
    CorruptResultError,
    DiskFullError,
    MemoryBudgetError,
    OutputNotWritableError,
    ResultExistsError,
    UnreachableSlideError,
)
from atlas_wsi.files import DISK_FULL
from atlas_wsi.heatmap.write import SUMMARY, find_damage, read_summary
from atlas_wsi.inference.predict import choose_model, predict
from atlas_wsi.inference.provenance import peak_memory_bytes
from atlas_wsi.progress import CancelToken
from atlas_wsi.slides.open import open_slide
from atlas_wsi.streaming.plan import parse_bytes
from atlas_wsi.tissue.mask import tissue_mask

if TYPE_CHECKING:
    from atlas_wsi.batch.journal import SlideAsked
    from atlas_wsi.batch.lease import Lease, Try
    from atlas_wsi.batch.options import BatchOptions, HowToRun
    from atlas_wsi.heatmap.heatmap import Heatmap
    from atlas_wsi.heatmap.summary import Summary
    from atlas_wsi.models.model import Model
    from atlas_wsi.slides.slide import Slide

_log = logging.getLogger(__name__)

LEAST_MEMORY_BYTES = 16 << 20
CLOSE_S = 5.0
"""Seconds that a worker which closes waits for its slide to come to a safe point."""
_MAY_PASS = (OutputNotWritableError, UnreachableSlideError)


class _TooLargeError(Exception):
    """The slide is to be spread over all workers, when they are idle."""


class Outcome(NamedTuple):
    """What a task tells its launcher; everything else is on disk."""

    kind: str
    """``"done"``, ``"failed"``, ``"again"`` (a try failed, others are left), ``"busy"`` (somebody
    works on the slide), ``"large"`` (to be spread over all workers), ``"stopped"``, or ``"full"``
    (the disk)."""
    message: str = ""
    """Of the error, for ``"again"`` and ``"full"``."""


class BatchWorker(WorkerPlugin):
    """What a worker keeps between slides: options, the list of slides, and the models.

    Tasks carry places in the list alone.
    """

    def __init__(self, out: str, run: str, options: BatchOptions, how: HowToRun) -> None:
        self.out, self.run, self.options, self.how = out, run, options, how
        self.name = plugin_name(run)

    def setup(self, worker: object) -> None:  # noqa: ARG002 - dask's signature
        """Begin on a worker."""
        self.journal = Journal(self.out)
        self.slides = self.journal.read_slides()
        self.alone = threading.Lock()
        """One slide at a time in a process, however many threads dask gives it."""
        self.cancel = CancelToken()
        """Stops the slide that is being done."""
        self._models: dict[str, tuple[Model, str]] = {}
        _leave_ctrl_c_to_the_launcher()

    async def teardown(self, worker: object) -> None:  # noqa: ARG002 - dask's signature
        """Leave the slide that is being done to others: the worker closes."""
        self.cancel.cancel()
        await asyncio.to_thread(self.alone.acquire, timeout=CLOSE_S)

    def model_for(self, slide: Slide) -> tuple[Model, str]:
        """Return the model of a slide, loaded by the first slide that needs it."""
        kind = self.options.model or ("scene" if slide.is_georeferenced else "slide")
        if kind not in self._models:
            self._models[kind] = choose_model(slide, self.options.model)
        return self._models[kind]


def plugin_name(run: str) -> str:
    """Name the plugin of a run."""
    return f"atlas-wsi-batch-{run}"


def run_slide(run: str, place: int, *, spread: bool = False) -> Outcome:
    """Predict one slide: the task that is sent to workers."""
    desk = get_worker().plugins[plugin_name(run)]
    assert isinstance(desk, BatchWorker)
    with desk.alone:
        return do_slide(desk, desk.slides[place], spread=spread)


def do_slide(desk: BatchWorker, asked: SlideAsked, *, spread: bool = False) -> Outcome:
    """Predict one slide here, unless it has ended or somebody works on it."""
    journal = desk.journal
    row = journal.row(asked.name)
    if row is not None:
        return Outcome(row.state)
    if journal.stop_file(desk.run).exists():
        return Outcome("stopped")
    try:
        lease = take(journal.leases_folder, asked.name, run=desk.run, lease_s=desk.how.lease_s)
    except DiskFullError as error:
        return Outcome("full", str(error))
    if lease is None:
        return Outcome("busy")
    try:
        row = journal.row(asked.name)  # who held it before may have ended between the two looks
        if row is None:
            row = _Attempt.begin(desk, asked, lease, spread=spread).row()
            if not lease.is_mine:
                return Outcome("busy")
            journal.write_row(row)
    except Exception as error:  # noqa: BLE001 - one bad slide must not stop the others
        return _give_back(lease, error)
    shutil.rmtree(journal.work_folder / asked.name, ignore_errors=True)
    lease.settle()
    return Outcome(row.state)


def _give_back(lease: Lease, error: Exception) -> Outcome:
    """Let others try a slide, for a reason that may pass."""
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


@dataclass(kw_only=True)
class _Attempt:
    """One try of a slide whose lease is held."""

    desk: BatchWorker
    asked: SlideAsked
    lease: Lease
    failed: list[Try]
    """Tries before this one that may have failed by the slide's fault."""
    begun: float
    warnings: list[str]
    spread: bool

    @classmethod
    def begin(cls, desk: BatchWorker, asked: SlideAsked, lease: Lease, *, spread: bool) -> _Attempt:
        failed = [one for one in lease.past if one.failed]
        _forget_peak_memory()
        return cls(
            desk=desk,
            asked=asked,
            lease=lease,
            failed=failed,
            begun=time.perf_counter(),
            warnings=[f"Try {one.number} ended early: {one.why}" for one in failed],
            spread=spread,
        )

    def row(self) -> Row:
        """Make the result, or tell why there is none."""
        if len(self.failed) >= self.desk.how.max_tries:
            return self._given_up()
        _remove_halves(self.desk.journal.out, self.asked.name)
        cancel = self.desk.cancel = CancelToken()
        with self.lease.kept(cancel.cancel):
            try:
                return self._done(self._summary(cancel))
            except Exception as error:
                if isinstance(error, Cancelled | _TooLargeError) or _is_full(error):
                    raise
                lasts = isinstance(error, AtlasError) and not isinstance(error, _MAY_PASS)
                if not lasts and len(self.failed) + 1 < self.desk.how.max_tries:
                    raise
                if not lasts:
                    _log.warning("%s is given up", self.asked.name, exc_info=error)
                return self._failed(error)

    def _summary(self, cancel: CancelToken) -> Summary:
        asked, options, out = self.asked, self.desk.options, self.desk.journal.out
        with open_slide(asked.source, mpp=asked.mpp or options.mpp, strict=options.strict) as slide:
            slide.require_mpp()
            model, reason = self.desk.model_for(slide)
            there = _result_in_place(out / asked.name, slide, model, options)
            if there is not None:
                return there
            most = options.split_over
            if most is not None and not self.spread and _gigapixels(slide, model) > most:
                raise _TooLargeError
            heatmap = self._predict(slide, model, cancel)
            used = heatmap.run.model.model_copy(update={"reason": reason})
            heatmap = replace(
                heatmap,
                slide=heatmap.slide.model_copy(update={"name": asked.name}),
                run=heatmap.run.model_copy(update={"model": used}),
            )
            thumbnail = slide.thumbnail()
            cancel.raise_if_cancelled()
            heatmap.write(out, formats=options.formats, thumbnail=thumbnail)
        return read_summary(out / asked.name)

    def _predict(self, slide: Slide, model: Model, cancel: CancelToken) -> Heatmap:
        """Predict, with half the memory and batch each time the GPU's does not suffice."""
        options = self.desk.options
        memory, batch = parse_bytes(options.memory), options.batch_size
        mask = tissue_mask(slide, keep_fat=options.keep_fat)
        while True:
            try:
                spread = None
                if self.spread:
                    spread = spread_over_workers(
                        self.desk, self.asked, memory=memory, batch_size=batch
                    )
                return predict(
                    slide,
                    model,
                    tissue=mask,
                    cell_px=options.cell_px,
                    precision=options.precision,
                    device=self.desk.how.device,
                    memory=memory,
                    batch_size=batch,
                    work=self.desk.journal.work_folder / self.asked.name,
                    spread=spread,
                    cancel=cancel,
                )
            except torch.OutOfMemoryError as error:
                memory, batch = memory // 2, None if batch is None else max(1, batch // 2)
                if memory < LEAST_MEMORY_BYTES:
                    raise MemoryBudgetError(
                        f"The memory of {self.desk.how.device} does not suffice, not even for "
                        f"{2 * memory >> 20} MiB: {error}",
                        hint="See what else uses the GPU.",
                    ) from error
            torch.cuda.empty_cache()
            self.warnings.append(
                f"The GPU's memory did not suffice; the slide was done with {memory >> 20} MiB."
            )

    def _done(self, summary: Summary) -> Row:
        run, slide = summary.run, summary.slide
        return self._outcome(
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
            areas={one.name: one.area for one in summary.classes},
            scores={one.name: one.score for one in summary.classes if one.score is not None},
            n_unreadable=run.n_unreadable,
            warnings=(*summary.warnings, *self.warnings),
        )

    def _failed(self, error: Exception) -> Row:
        return self._outcome(
            state="failed",
            error=type(error).__name__,
            reason=_reason(error),
            warnings=tuple(self.warnings),
        )

    def _given_up(self) -> Row:
        last = self.failed[-1].holder
        error = last.error if last and last.error else "WorkerDied"
        return self._outcome(
            state="failed",
            error=error,
            reason=f"Given up after {len(self.failed)} tries; the last: {self.failed[-1].why}",
            tries=len(self.failed),
            warnings=tuple(self.warnings),
        )

    def _outcome(self, **fields: object) -> Row:
        source = Path(self.asked.source)
        told: dict[str, object] = {
            "name": self.asked.name,
            "source": self.asked.source,
            "tries": len(self.failed) + 1,
            "worker": worker_name(),
            "started": self.lease.holder.started,
            "ended": now(),
            "wall_s": round(time.perf_counter() - self.begun, 3),
            "peak_memory_bytes": peak_memory_bytes(),
            "slide_bytes": source.stat().st_size if source.is_file() else 0,
        }
        return Row.model_validate(told | fields)


def _gigapixels(slide: Slide, model: Model) -> float:
    """Return the size of a slide at the model's resolution."""
    mpp = slide.require_mpp()
    rows, cols = (n * um / model.card.mpp for n, um in zip(slide.shape, mpp, strict=True))
    return rows * cols / 1e9


def _result_in_place(
    folder: Path, slide: Slide, model: Model, options: BatchOptions
) -> Summary | None:
    """Return the summary of a result that is there, whole, and the one that would be made."""
    if not (folder / SUMMARY).is_file():
        return None
    try:
        summary = read_summary(folder)
        damage = find_damage(folder, summary)
    except CorruptResultError as error:
        raise ResultExistsError(
            f"{folder} holds something else: {error.message}", hint="Move it away."
        ) from error
    run = summary.run
    same = (
        summary.slide.path == slide.path
        and summary.slide.mpp == slide.mpp
        and run.model.sha256 == model.sha256
        and run.parameters.get("cell_px") == options.cell_px
    )
    if not same:
        raise ResultExistsError(
            f"{folder} holds another result: of {summary.slide.path} by {run.model.name}.",
            hint="Choose another output folder, or --overwrite.",
        )
    if damage:
        shutil.rmtree(folder)
        return None
    return summary


def _remove_halves(out: Path, name: str) -> None:
    """Remove what a try that died was writing; nobody else writes while the lease is held."""
    for path in out.glob(f".{glob.escape(name)}.partial-*"):
        shutil.rmtree(path, ignore_errors=True)


def _leave_ctrl_c_to_the_launcher() -> None:
    """Keep a Ctrl-C, which a terminal sends to all processes, from ending a slide that is begun."""
    is_of_a_nanny = multiprocessing.parent_process() is not None
    if is_of_a_nanny and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _forget_peak_memory() -> None:
    """Let the peak of memory begin anew, where the system can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

"""The launcher: sends the slides of an archive to workers until each has ended."""

from __future__ import annotations

import logging
import secrets
import shutil
import time
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed import KilledWorker, as_completed
from distributed.client import ClosedClientError
from distributed.comm.core import CommClosedError

from atlas_wsi.batch.archive import write_archive
from atlas_wsi.batch.clusters import connect, read_cluster_options
from atlas_wsi.batch.journal import Journal
from atlas_wsi.batch.options import BatchOptions, RunOptions
from atlas_wsi.batch.start_run import begin, sweep
from atlas_wsi.batch.status import archive_status
from atlas_wsi.batch.task import Outcome, run_slide
from atlas_wsi.batch.verify import verify_archive
from atlas_wsi.batch.worker import BatchWorker, plugin_name
from atlas_wsi.errors import ArchiveError, DiskFullError
from atlas_wsi.files import write_text
from atlas_wsi.progress import CancelToken, silent

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    from distributed import Client, Future

    from atlas_wsi.batch.journal import SlideRequest
    from atlas_wsi.batch.status import ArchiveStatus
    from atlas_wsi.progress import Progress

_log = logging.getLogger(__name__)

POLL_S = 0.1
RECONNECT_S = 300.0
"""Seconds that a lost scheduler may take to come back."""
BUSY_S = 2.0
"""Seconds between two checks of slides that others work on."""
NO_WORKER_S = 30.0
"""Seconds without a worker after which a warning is logged."""


def predict_archive(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    options: BatchOptions | None = None,
    run_options: RunOptions | None = None,
    cluster: str | None = None,
    workers: int | None = None,
    cluster_options: dict[str, Any] | str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
    verify: bool = False,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> ArchiveStatus:
    """Predict all slides of an archive, here or on a cluster.

    The same call resumes an earlier one that was stopped, and several may work on one output folder
    at the same time.

    Parameters
    ----------
    source
        A folder, a pattern, a CSV or a prefix of an object store.
    out
        Output folder; with workers on other machines it must be on a disk that all share.
    options
        How slides are predicted.
    run_options
        What does not change the results.
    cluster
        ``"local"``, ``"cuda"``, ``"slurm"``, ``"kubernetes"`` or the address of a scheduler; by
        default one worker on this machine.
    workers
        Number of workers to start.
    cluster_options
        Options of the cluster's class, or a YAML file with them.
    overwrite
        Whether to remove existing results.
    retry_failed
        Whether to retry failed slides.
    verify
        Whether to compare finished results with their checksums and repeat those that are damaged.
    progress
        Called with the number of slides that have ended.
    cancel
        Stops the work when the slides in progress are done.

    Returns
    -------
    ArchiveStatus
        State of every slide.

    Raises
    ------
    DiskFullError
        If there is no space left; finished results are kept.
    """
    report, options = progress or silent, options or BatchOptions()
    run_options = run_options or RunOptions()
    if isinstance(cluster_options, (str, PathLike)):
        cluster_options = read_cluster_options(cluster_options)
    journal = Journal(Path(out).absolute())
    slides, indices = begin(journal, source, options, overwrite=overwrite)
    if retry_failed:
        for row in journal.read_rows().values():
            if row.state == "failed":
                journal.remove_row(row.name)
    if verify:
        for name, damage in verify_archive(journal.out, progress=report).items():
            _log.warning("%s is repeated: %s.", name, damage)
            journal.remove_row(name)
            shutil.rmtree(journal.out / name, ignore_errors=True)
    launcher = Launcher(
        *(journal, slides, indices, options, run_options),
        report=report,
        cancel=cancel or CancelToken(),
    )
    try:
        launcher.work(lambda: connect(cluster, workers=workers, options=cluster_options))
    finally:
        sweep(journal)
        write_archive(journal)
    if launcher.full:
        raise DiskFullError(launcher.full)
    return archive_status(journal.out)


class _SchedulerLostError(Exception):
    """The scheduler was lost, with its state."""


class Launcher:
    """One run over an archive."""

    def __init__(
        self,
        journal: Journal,
        slides: Sequence[SlideRequest],
        indices: Sequence[int],
        options: BatchOptions,
        run_options: RunOptions,
        *,
        report: Progress = silent,
        cancel: CancelToken,
        task: Callable[..., Outcome] = run_slide,
    ) -> None:
        self.journal, self.slides, self.indices = journal, slides, indices
        self.options, self.run_options = options, run_options
        self.report, self.cancel = report, cancel
        self.run = secrets.token_hex(3)
        self.task = partial(task, self.run)
        self.full = ""
        """Message of the system when the disk was full."""
        self._ended = 0
        self._draining = False
        self._large: set[int] = set()
        """Indices of slides that are to be distributed over all workers."""
        self._wave = 0
        self._quiet_since = time.monotonic()

    def waiting(self) -> list[int]:
        """List the slides that have not ended."""
        ended = self.journal.ended()
        return [index for index in self.indices if self.slides[index].name not in ended]

    def work(self, open_cluster: Callable[[], Any]) -> None:
        """Send slides until all have ended, or the work is stopped."""
        lost = False
        try:
            while self.waiting() and not self._draining:
                with ExitStack() as opened:
                    client = self._connect(opened, open_cluster, again=lost)
                    if client is not None:
                        lost = not self._rounds(client)
        finally:
            self.journal.stop_file(self.run).unlink(missing_ok=True)

    def _connect(
        self, opened: ExitStack, open_cluster: Callable[[], Any], *, again: bool
    ) -> Client | None:
        """Open the cluster; wait for one that was lost."""
        deadline = time.monotonic() + RECONNECT_S
        if again:
            _log.warning("The scheduler was lost; waiting for it to come back.")
        while not self.cancel.is_cancelled:
            try:
                client: Client = opened.enter_context(open_cluster())
                opened.enter_context(self._registered(client))
            except (ArchiveError, CommClosedError) as error:
                if not again and isinstance(error, ArchiveError):
                    raise
                if time.monotonic() > deadline:
                    raise ArchiveError(
                        f"The scheduler was lost and did not come back in {RECONNECT_S:.0f} s.",
                        hint="Start it again and run the same command to resume.",
                    ) from error
                time.sleep(POLL_S)
            else:
                return client
        self._draining = True
        return None

    def _rounds(self, client: Client) -> bool:
        """Send slides; False if the scheduler was lost meanwhile."""
        while (waiting := self.waiting()) and not self._draining:
            self._ended = len(self.indices) - len(waiting)
            self.report("slides", self._ended, len(self.indices))
            try:
                kinds = self._round(
                    client, [index for index in waiting if index not in self._large]
                )
                for index in self.waiting():
                    if index in self._large and not self._draining:
                        kinds |= self._round(client, [index], sharded=True)
            except (_SchedulerLostError, CommClosedError, ClosedClientError):
                return False
            if kinds == {"busy"}:
                time.sleep(BUSY_S)
        return True

    @contextmanager
    def _registered(self, client: Client) -> Iterator[None]:
        worker = BatchWorker(str(self.journal.out), self.run, self.options, self.run_options)
        client.register_plugin(worker)
        try:
            yield
        finally:
            if client.status == "running":
                with suppress(OSError, RuntimeError, ValueError):
                    client.unregister_worker_plugin(plugin_name(self.run))

    def _round(self, client: Client, indices: list[int], *, sharded: bool = False) -> set[str]:
        """Send slides and wait until each has an outcome."""
        kinds: set[str] = set()
        futures = self.submit(client, indices, sharded=sharded)
        coming = as_completed(futures, loop=client.loop)
        while not coming.is_empty():
            if (self.cancel.is_cancelled or self.full) and not self._draining:
                self._drain(client, list(coming.futures))
            if not coming.has_ready():
                self._warn_without_workers(client)
                time.sleep(POLL_S)
                continue
            for index, outcome in self._outcomes(client, coming.next_batch(block=False)):
                kinds.add(outcome.kind)
                self._ended += outcome.kind in {"done", "failed"}
                if outcome.kind == "large":
                    self._large.add(index)
                self.full = outcome.message if outcome.kind == "full" else self.full
                if outcome.kind == "again" and not self._draining:
                    _log.warning("%s is retried: %s", self.slides[index].name, outcome.message)
                    coming.update(self.submit(client, [index], sharded=sharded))
            self.report("slides", self._ended, len(self.indices))
        return kinds

    def submit(
        self, client: Client, indices: list[int], *, sharded: bool = False
    ) -> list[Future[Outcome]]:
        """Send slides to the scheduler: a short key and a number each."""
        self._wave += 1
        wave = f"{self.run}.{self._wave}"  # sent with each slide
        task = partial(self.task, sharded=True) if sharded else self.task
        return client.map(task, indices, key=[(wave, index) for index in indices], pure=False)

    def _outcomes(
        self, client: Client, futures: list[Future[Outcome]]
    ) -> Iterator[tuple[int, Outcome]]:
        finished = [future for future in futures if future.status == "finished"]
        outcomes = dict(zip(finished, client.gather(finished, errors="skip"), strict=False))
        for future in futures:
            index: int = future.key[1]  # type: ignore[index, assignment]
            if future in outcomes:
                yield index, outcomes[future]
            elif future.status == "cancelled" or client.status != "running":
                if not self._draining or client.status != "running":
                    raise _SchedulerLostError
                yield index, Outcome("stopped")
            elif future.status == "error":
                yield index, _of_error(future)
            else:  # it ended, and then the worker that held its outcome died
                row = self.journal.row(self.slides[index].name)
                yield index, Outcome(row.state if row else "again", "its worker died.")

    def _drain(self, client: Client, futures: list[Future[Outcome]]) -> None:
        """Start no more slides; finish those in progress."""
        self._draining = True
        write_text(self.journal.stop_file(self.run), "")
        running = {key for keys in client.processing().values() for key in keys}
        client.cancel([future for future in futures if future.key not in running])
        _log.warning("Finishing the slides in progress; no other is started.")

    def _warn_without_workers(self, client: Client) -> None:
        now = time.monotonic()
        if client.scheduler_info()["workers"]:
            self._quiet_since = now
        elif now - self._quiet_since > NO_WORKER_S:
            self._quiet_since = now
            _log.warning("The scheduler has no worker yet; slides wait for one.")


def _of_error(future: Future[Outcome]) -> Outcome:
    """Return the outcome of a task that raised."""
    try:
        error = future.exception()
    except CancelledError as cancelled:
        raise _SchedulerLostError from cancelled
    if isinstance(error, KilledWorker):
        return Outcome("again", "its worker died.")
    raise ArchiveError(
        f"A worker cannot run slides: {type(error).__name__}: {error}.",
        hint="Workers need the same atlas-wsi and Python as this command, and its output folder.",
    ) from error

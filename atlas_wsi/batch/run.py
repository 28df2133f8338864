"""The launcher: sends the slides of an archive to workers until each has ended."""

from __future__ import annotations

import logging
import secrets
import shutil
import time
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed import KilledWorker, as_completed
from distributed.client import ClosedClientError
from distributed.comm.core import CommClosedError

from atlas_wsi.batch.archive import write_archive
from atlas_wsi.batch.begin import begin, sweep
from atlas_wsi.batch.clusters import connect
from atlas_wsi.batch.journal import Journal
from atlas_wsi.batch.options import BatchOptions, HowToRun
from atlas_wsi.batch.status import archive_status
from atlas_wsi.batch.task import BatchWorker, Outcome, plugin_name, run_slide
from atlas_wsi.batch.verify import find_damaged
from atlas_wsi.errors import ArchiveError, DiskFullError
from atlas_wsi.files import write_text
from atlas_wsi.progress import CancelToken, silent

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    from distributed import Client, Future

    from atlas_wsi.batch.journal import SlideAsked
    from atlas_wsi.batch.status import Status
    from atlas_wsi.progress import Progress

_log = logging.getLogger(__name__)

POLL_S = 0.1
RECONNECT_S = 300.0
"""Seconds that a lost scheduler may take to come back."""
BUSY_S = 2.0
"""Seconds between two looks at slides that others work on."""
NO_WORKER_S = 30.0
"""Seconds without a worker after which the user is told."""


def predict_archive(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    options: BatchOptions | None = None,
    how: HowToRun | None = None,
    cluster: str | None = None,
    workers: int | None = None,
    cluster_options: dict[str, Any] | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
    verify: bool = False,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Status:
    """Predict all slides of an archive, here or on a cluster.

    The same call goes on where an earlier one was stopped, and several may work on one output
    folder at the same time.

    Parameters
    ----------
    source
        A folder, a pattern, a CSV, a prefix of an object store: `list_slides`.
    out
        Output folder; with workers on other machines it must lie on a disk that all share.
    options
        How slides are predicted.
    how
        What does not change the results.
    cluster
        Where the work is done: `atlas_wsi.batch.clusters.connect`.
    workers
        How many.
    cluster_options
        Given to the cluster's class.
    overwrite
        Whether to remove what was done and start anew.
    retry_failed
        Whether slides that failed are done again.
    verify
        Whether finished results are read again and compared with their checksums; those that are
        damaged are done again.
    progress
        Told how many slides have ended.
    cancel
        Stops the work when the slides that are begun are done.

    Returns
    -------
    Status
        How every slide of the archive stands.

    Raises
    ------
    DiskFullError
        If there is no space left; what is finished is kept.
    """
    report, options, how = progress or silent, options or BatchOptions(), how or HowToRun()
    journal = Journal(Path(out).absolute())
    slides, places = begin(journal, source, options, overwrite=overwrite)
    if retry_failed:
        for row in journal.read_rows().values():
            if row.state == "failed":
                journal.remove_row(row.name)
    if verify:
        for name, damage in find_damaged(journal, report).items():
            _log.warning("%s is done again: %s.", name, damage)
            journal.remove_row(name)
            shutil.rmtree(journal.out / name, ignore_errors=True)
    launcher = Launcher(
        journal, slides, places, options, how, report=report, cancel=cancel or CancelToken()
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
    """The scheduler went away, and with it all that it knew."""


class Launcher:
    """One run over an archive."""

    def __init__(
        self,
        journal: Journal,
        slides: Sequence[SlideAsked],
        places: Sequence[int],
        options: BatchOptions,
        how: HowToRun,
        *,
        report: Progress = silent,
        cancel: CancelToken,
        task: Callable[..., Outcome] = run_slide,
    ) -> None:
        self.journal, self.slides, self.places = journal, slides, places
        self.options, self.how, self.report, self.cancel = options, how, report, cancel
        self.run = secrets.token_hex(3)
        self.task = partial(task, self.run)
        self.full = ""
        """What the system said when the disk was full."""
        self._ended = 0
        self._draining = False
        self._large: set[int] = set()
        """Places of slides that are to be spread over all workers."""
        self._wave = 0
        self._quiet_since = time.monotonic()

    def open_places(self) -> list[int]:
        """List the slides that have not ended."""
        ended = self.journal.ended()
        return [place for place in self.places if self.slides[place].name not in ended]

    def work(self, open_cluster: Callable[[], Any]) -> None:
        """Send slides until all have ended, or the work is stopped."""
        lost = False
        try:
            while self.open_places() and not self._draining:
                with ExitStack() as opened:
                    client = self._connect(opened, open_cluster, again=lost)
                    if client is not None:
                        lost = not self._rounds(client)
        finally:
            self.journal.stop_file(self.run).unlink(missing_ok=True)

    def _connect(
        self, opened: ExitStack, open_cluster: Callable[[], Any], *, again: bool
    ) -> Client | None:
        """Open the cluster; one that was lost may take its time."""
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
                        hint="Start it again; the same command goes on.",
                    ) from error
                time.sleep(POLL_S)
            else:
                return client
        self._draining = True
        return None

    def _rounds(self, client: Client) -> bool:
        """Send slides; False if the scheduler was lost meanwhile."""
        while (waiting := self.open_places()) and not self._draining:
            self._ended = len(self.places) - len(waiting)
            self.report("slides", self._ended, len(self.places))
            try:
                kinds = self._round(
                    client, [place for place in waiting if place not in self._large]
                )
                for place in self.open_places():
                    if place in self._large and not self._draining:
                        kinds |= self._round(client, [place], spread=True)
            except (_SchedulerLostError, CommClosedError, ClosedClientError):
                return False
            if kinds == {"busy"}:
                time.sleep(BUSY_S)
        return True

    @contextmanager
    def _registered(self, client: Client) -> Iterator[None]:
        desk = BatchWorker(str(self.journal.out), self.run, self.options, self.how)
        client.register_plugin(desk)
        try:
            yield
        finally:
            if client.status == "running":
                with suppress(OSError, RuntimeError, ValueError):
                    client.unregister_worker_plugin(plugin_name(self.run))

    def _round(self, client: Client, places: list[int], *, spread: bool = False) -> set[str]:
        """Send slides and wait until each has come back, one way or another."""
        kinds: set[str] = set()
        futures = self.submit(client, places, spread=spread)
        coming = as_completed(futures, loop=client.loop)
        while not coming.is_empty():
            if (self.cancel.is_cancelled or self.full) and not self._draining:
                self._drain(client, list(coming.futures))
            if not coming.has_ready():
                self._tell_without_workers(client)
                time.sleep(POLL_S)
                continue
            for place, outcome in self._outcomes(client, coming.next_batch(block=False)):
                kinds.add(outcome.kind)
                self._ended += outcome.kind in {"done", "failed"}
                if outcome.kind == "large":
                    self._large.add(place)
                self.full = outcome.message if outcome.kind == "full" else self.full
                if outcome.kind == "again" and not self._draining:
                    _log.warning("%s is tried again: %s", self.slides[place].name, outcome.message)
                    coming.update(self.submit(client, [place], spread=spread))
            self.report("slides", self._ended, len(self.places))
        return kinds

    def submit(
        self, client: Client, places: list[int], *, spread: bool = False
    ) -> list[Future[Outcome]]:
        """Send slides to the scheduler: a short key and a number each."""
        self._wave += 1
        wave = f"{self.run}.{self._wave}"  # sent with each slide
        task = partial(self.task, spread=True) if spread else self.task
        return client.map(task, places, key=[(wave, place) for place in places], pure=False)

    def _outcomes(
        self, client: Client, futures: list[Future[Outcome]]
    ) -> Iterator[tuple[int, Outcome]]:
        finished = [future for future in futures if future.status == "finished"]
        told = dict(zip(finished, client.gather(finished, errors="skip"), strict=False))
        for future in futures:
            place: int = future.key[1]  # type: ignore[index, assignment]
            if future in told:
                yield place, told[future]
            elif future.status == "cancelled" or client.status != "running":
                if not self._draining or client.status != "running":
                    raise _SchedulerLostError
                yield place, Outcome("stopped")
            elif future.status == "error":
                yield place, _of_error(future)
            else:  # it came to its end, and then the worker that could tell died
                row = self.journal.row(self.slides[place].name)
                yield place, Outcome(row.state if row else "again", "its worker died.")

    def _drain(self, client: Client, futures: list[Future[Outcome]]) -> None:
        """Begin no slide any more; those that are begun come to their end."""
        self._draining = True
        write_text(self.journal.stop_file(self.run), "")
        begun = {key for keys in client.processing().values() for key in keys}
        client.cancel([future for future in futures if future.key not in begun])
        _log.warning("Slides that are begun are finished; no other is begun.")

    def _tell_without_workers(self, client: Client) -> None:
        now = time.monotonic()
        if client.scheduler_info()["workers"]:
            self._quiet_since = now
        elif now - self._quiet_since > NO_WORKER_S:
            self._quiet_since = now
            _log.warning("The scheduler has no worker yet; slides wait for one.")


def _of_error(future: Future[Outcome]) -> Outcome:
    """Tell what it means that a task did not even tell how it went."""
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

"""What a dask worker holds between slides."""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
import threading
from typing import TYPE_CHECKING

from distributed import WorkerPlugin

from atlas_wsi.batch.journal import Journal
from atlas_wsi.progress import CancelToken

if TYPE_CHECKING:
    from atlas_wsi.batch.options import BatchOptions, RunOptions

CLOSE_S = 5.0
"""Seconds that a closing worker waits for its slide to reach a safe point."""


class BatchWorker(WorkerPlugin):
    """Options and the list of slides, so that a task carries only an index in the list."""

    def __init__(self, out: str, run: str, options: BatchOptions, run_options: RunOptions) -> None:
        self.out, self.run, self.options, self.run_options = out, run, options, run_options
        self.name = plugin_name(run)

    def setup(self, worker: object) -> None:  # noqa: ARG002 - dask's signature
        """Start on a worker."""
        self.journal = Journal(self.out)
        self.slides = self.journal.read_slides()
        self.one_at_a_time = threading.Lock()
        """One slide at a time in a process, however many threads dask gives it."""
        self.cancel = CancelToken()
        """Stops the current slide."""
        # a Ctrl-C, which a terminal sends to all processes, must not end the current slide
        is_of_a_nanny = multiprocessing.parent_process() is not None
        if is_of_a_nanny and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    async def teardown(self, worker: object) -> None:  # noqa: ARG002 - dask's signature
        """Stop the current slide: the worker closes."""
        self.cancel.cancel()
        await asyncio.to_thread(self.one_at_a_time.acquire, timeout=CLOSE_S)


def plugin_name(run: str) -> str:
    """Name the plugin of a run."""
    return f"atlas-wsi-batch-{run}"

"""Leases: files by which one process holds a slide.

The n-th attempt at a slide is the file ``<name>.<n>``, made with ``O_EXCL``. Its holder touches it while
it works (the heartbeat); a lease without a heartbeat for too long, or whose process is gone from this
machine, has expired, and the next attempt is ``<name>.<n + 1>``, which again only one can make. So
no lease is ever taken away by removing a file, no two processes hold a slide at the same time, and
failed attempts stay on disk to be counted.

Times are those of the file server: clocks of a cluster's machines may differ.
"""

from __future__ import annotations

import os
import secrets
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil
from pydantic import ValidationError

from atlas_wsi.batch.journal import now
from atlas_wsi.files import disk_errors, machine, write_text
from atlas_wsi.heatmap.records import Count, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HEARTBEAT_TIMEOUT_S = 120.0
"""Seconds without a heartbeat after which a lease has expired."""


class Holder(Record):
    """Holder of a lease, as the file records it."""

    token: str
    """Unique to this holder."""
    machine: str
    """Where its process id is unique."""
    pid: Count
    worker: str
    """Host and process, for people."""
    run: str
    """The launcher that sent the slide."""
    started: str
    """When it started, ISO 8601 with offset."""
    heartbeat_timeout_s: float
    """Seconds without a heartbeat after which the lease has expired."""
    ended: bool = False
    """Whether the holder released it without an outcome."""
    counts: bool = True
    """Whether it failed for a reason that may be the slide's."""
    error: str = ""
    """Kind of the error that ended it."""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt at a slide that has not ended."""

    name: str
    number: int
    """1 for the first."""
    holder: Holder | None
    """Who holds or held it; None if it died before the lease was written."""
    is_held: bool
    """Whether a worker works on it."""

    @property
    def failed(self) -> bool:
        """Whether it failed for a reason that may be the slide's, such as the worker's death."""
        return not self.is_held and (self.holder is None or self.holder.counts)

    @property
    def why(self) -> str:
        """How it ended, in words."""
        if self.holder is None:
            return "its worker died."
        if self.holder.ended:
            return self.holder.reason
        return f"its worker {self.holder.worker}, started {self.holder.started}, died."


def read_attempts(folder: Path, only: str | None = None) -> dict[str, list[Attempt]]:
    """Read the leases of all slides, or of only one."""
    attempts: dict[str, list[Attempt]] = {}
    files = sorted(_files(folder)) if folder.is_dir() else []  # a copy may lack empty folders
    files = [file for file in files if only in (None, file[0])]
    if not files:
        return attempts
    clock = _server_time(folder)
    for name, number in files:
        attempt = _read_attempt(folder, name, number, clock)
        if attempt is not None:
            attempts.setdefault(name, []).append(attempt)
    return attempts


def _files(folder: Path) -> Iterator[tuple[str, int]]:
    for path in folder.iterdir():
        name, _, number = path.name.rpartition(".")
        if number.isdigit() and not name.startswith("."):
            yield name, int(number)


def _read_attempt(folder: Path, name: str, number: int, clock: float) -> Attempt | None:
    path = folder / f"{name}.{number}"
    try:
        touched = path.stat().st_mtime
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        holder = Holder.model_validate_json(text)
    except ValidationError:  # it is being made, or its maker died
        holder = None
    limit = HEARTBEAT_TIMEOUT_S if holder is None else holder.heartbeat_timeout_s
    held = clock - touched < limit
    if holder is not None:
        gone = holder.machine == machine() and not _is_alive(holder.pid)
        held = held and not holder.ended and not gone
    return Attempt(name=name, number=number, holder=holder, is_held=held)


def _is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _server_time(folder: Path) -> float:
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime


class Lease:
    """The right to work on a slide."""

    def __init__(self, folder: Path, name: str, past: list[Attempt], holder: Holder) -> None:
        self.folder, self.name, self.past, self.holder = folder, name, past, holder
        self.number = past[-1].number + 1 if past else 1
        self.path = folder / f"{name}.{self.number}"

    @property
    def is_mine(self) -> bool:
        """Whether the lease is still held: no other process found it expired."""
        if (self.folder / f"{self.name}.{self.number + 1}").exists():
            return False
        try:
            return self.holder.token.encode() in self.path.read_bytes()
        except FileNotFoundError:
            return False

    @contextmanager
    def held(self, lost: Callable[[], None]) -> Iterator[None]:
        """Send heartbeats from a thread."""
        done = threading.Event()

        def beat() -> None:
            while not done.wait(min(5.0, self.holder.heartbeat_timeout_s / 4)):
                with suppress(OSError):  # a file server may be unreachable for a while
                    if not self.is_mine:
                        lost()
                        return
                    os.utime(self.path)

        thread = threading.Thread(target=beat, name="atlas-wsi-lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def give_back(self, *, error: str, reason: str, counts: bool) -> None:
        """Release the slide for other attempts."""
        if self.is_mine:
            ended = {"ended": True, "error": error, "reason": reason, "counts": counts}
            write_text(self.path, self.holder.model_copy(update=ended).model_dump_json())

    def settle(self) -> None:
        """Remove all attempts of a slide whose outcome is recorded."""
        for number in range(self.number, 0, -1):
            (self.folder / f"{self.name}.{number}").unlink(missing_ok=True)


def take(
    folder: Path, name: str, *, run: str = "", heartbeat_timeout_s: float = HEARTBEAT_TIMEOUT_S
) -> Lease | None:
    """Take the lease of a slide, unless another process holds it."""
    past = read_attempts(folder, only=name).get(name, [])
    if past and past[-1].is_held:
        return None
    holder = Holder(
        token=secrets.token_hex(8),
        machine=machine(),
        pid=os.getpid(),
        worker=worker_name(),
        run=run,
        started=now(),
        heartbeat_timeout_s=heartbeat_timeout_s,
    )
    lease = Lease(folder, name, past, holder)
    with disk_errors(lease.path):
        try:
            file = lease.path.open("x", encoding="utf-8")
        except FileExistsError:
            return None
        try:
            with file:
                file.write(holder.model_dump_json())
        except OSError:
            lease.path.unlink()
            raise
    return lease


def wait_for(folder: Path, name: str, *, poll_s: float = 0.05) -> Lease:
    """Take a lease that is held for moments only, waiting for it."""
    while True:
        lease = take(folder, name)
        if lease is not None:
            return lease
        time.sleep(poll_s)


def worker_name() -> str:
    """Name this process for people."""
    return f"{os.uname().nodename if hasattr(os, 'uname') else 'host'}:{os.getpid()}"

"""Progress of an archive: slides done, running, waiting, failed; speed and time left."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from atlas_wsi.batch.journal import Journal
from atlas_wsi.batch.lease import read_attempts
from atlas_wsi.errors import ArchiveError

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from atlas_wsi.batch.journal import Row, SlideRequest
    from atlas_wsi.batch.lease import Attempt

RECENT = 50
"""Slides, the last to end, from which the speed is measured."""
State = Literal["done", "running", "waiting", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideStatus:
    """State of one slide."""

    name: str
    """Name of its folder in the output folder."""
    source: str
    """Absolute path or URL."""
    state: State
    """Whether it has a result."""
    attempts: int
    """How many times it was started."""
    reason: str = ""
    """Why it failed, or how its last attempt ended."""
    worker: str = ""
    """Host and process that ended it or works on it."""
    since: str = ""
    """When it ended or started, ISO 8601 with offset."""
    wall_s: float = 0.0
    """Seconds that it took."""
    is_incomplete: bool = False
    """Whether too much of its tissue could not be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveStatus:
    """Progress of an archive."""

    out: Path
    """The output folder."""
    slides: tuple[SlideStatus, ...]
    """In the order of the list."""
    slides_per_hour: float | None
    """Speed of the last slides that ended; None until two have."""
    eta_s: float | None
    """Seconds until the last slide has ended at that speed."""

    def count(self, state: State) -> int:
        """Count the slides in a state.

        Parameters
        ----------
        state
            ``"done"``, ``"running"``, ``"waiting"`` or ``"failed"``.

        Returns
        -------
        int
            Slides.
        """
        return Counter(slide.state for slide in self.slides)[state]

    @property
    def n_incomplete(self) -> int:
        """How many of the finished slides could not be read in large part."""
        return sum(slide.is_incomplete for slide in self.slides)

    def as_json(self) -> dict[str, Any]:
        """Return all fields as JSON types.

        Returns
        -------
        dict
            Counts by state, speed, and all slides.
        """
        states: tuple[State, ...] = ("done", "running", "waiting", "failed")
        return {
            "out": str(self.out),
            **{state: self.count(state) for state in states},
            "incomplete": self.n_incomplete,
            "slides_per_hour": self.slides_per_hour,
            "eta_s": self.eta_s,
            "slides": [asdict(slide) for slide in self.slides],
        }


def archive_status(out: str | os.PathLike[str]) -> ArchiveStatus:
    """Read the progress of an archive.

    Parameters
    ----------
    out
        Its output folder. Only small files in it are read, so this may run during the work.

    Returns
    -------
    ArchiveStatus
        State of every slide.

    Raises
    ------
    ArchiveError
        If the folder holds no archive.
    """
    journal = Journal(out)
    if not journal.exists:
        raise ArchiveError(
            f"{journal.out} is not the output folder of an archive.",
            hint="Start one: atlas-wsi batch SOURCE -o OUT.",
        )
    # leases before rows: a slide that ends in between is then seen as ended
    attempts = read_attempts(journal.leases_folder)
    rows = journal.read_rows()
    slides = tuple(
        _status_of(slide, rows.get(slide.name), attempts.get(slide.name, []))
        for slide in journal.read_slides()
    )
    speed = _slides_per_hour(list(rows.values()))
    left = sum(slide.state in {"running", "waiting"} for slide in slides)
    return ArchiveStatus(
        out=journal.out,
        slides=slides,
        slides_per_hour=speed,
        eta_s=left / speed * 3600 if speed else None,
    )


def _status_of(slide: SlideRequest, row: Row | None, attempts: list[Attempt]) -> SlideStatus:
    if row is not None:
        common = row.model_dump(
            include={"state", "attempts", "reason", "worker", "wall_s", "is_incomplete"}
        )
        return SlideStatus(name=slide.name, source=slide.source, since=row.ended, **common)
    status = SlideStatus(
        name=slide.name, source=slide.source, state="waiting", attempts=len(attempts)
    )
    if not attempts:
        return status
    last = attempts[-1]
    if not last.is_held:
        return replace(status, reason=last.why)
    if last.holder is None:
        return replace(status, state="running")
    return replace(status, state="running", worker=last.holder.worker, since=last.holder.started)


def _slides_per_hour(rows: list[Row]) -> float | None:
    ends = sorted(dt.datetime.fromisoformat(row.ended) for row in rows if row.ended)[-RECENT:]
    if len(ends) < 2:
        return None
    seconds = (ends[-1] - ends[0]).total_seconds()
    return (len(ends) - 1) / seconds * 3600 if seconds > 0 else None

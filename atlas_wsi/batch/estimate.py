"""Time and disk space that an archive needs, estimated from a measured sample."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas_wsi.batch.journal import Journal
from atlas_wsi.batch.run import predict_archive
from atlas_wsi.batch.source import list_slides
from atlas_wsi.errors import ArchiveError
from atlas_wsi.files import write_csv

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from atlas_wsi.batch.journal import Row
    from atlas_wsi.batch.options import BatchOptions, RunOptions
    from atlas_wsi.progress import CancelToken, Progress

SAMPLE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveEstimate:
    """What an archive needs."""

    slides: int
    """Number of slides."""
    slide_bytes: int | None
    """Bytes of their files; None if unknown (folders, URLs)."""
    sampled: int
    """Slides of the sample that were predicted."""
    failed: int
    """Slides of the sample that failed."""
    windows: int
    """Windows to encode."""
    worker_hours: float
    """Hours of one worker like that of the sample, reading included."""
    hours: float
    """Hours with the requested number of workers."""
    result_bytes: int
    """Bytes of the results."""
    peak_memory_bytes: int
    """Largest memory of the worker in the sample."""

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types.

        Returns
        -------
        dict
            Value by field.
        """
        return asdict(self)


def estimate_archive(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    options: BatchOptions | None = None,
    run_options: RunOptions | None = None,
    workers: int = 1,
    sample: int = SAMPLE,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> ArchiveEstimate:
    """Predict a few slides of an archive on this machine and extrapolate to all.

    Parameters
    ----------
    source
        As for `predict_archive`.
    out
        Output folder of the archive, which is not searched for slides.
    options
        How slides are predicted.
    run_options
        What does not change the results.
    workers
        Number of workers to plan for.
    sample
        Slides to predict, from small to large.
    progress
        Called as the sample proceeds.
    cancel
        Stops the sample.

    Returns
    -------
    ArchiveEstimate
        Time, disk space and memory.

    Raises
    ------
    ArchiveError
        If no slide of the sample could be predicted.
    """
    slides = list_slides(source, leave_out=out)
    sizes = [_size(path) for path, _ in slides]
    order = sorted(range(len(slides)), key=lambda index: sizes[index] or 0)
    count = min(sample, len(slides))
    chosen = sorted({order[(2 * k + 1) * len(order) // (2 * count)] for k in range(count)})
    with tempfile.TemporaryDirectory(prefix="atlas-wsi-estimate-") as folder:
        table = Path(folder, "sample.csv")
        write_csv(table, ("slide", "mpp"), [slides[index] for index in chosen])
        journal = Journal(Path(folder, "out"))
        predict_archive(
            table,
            journal.out,
            options=options,
            run_options=run_options,
            progress=progress,
            cancel=cancel,
        )
        rows = sorted(journal.read_rows().values(), key=lambda row: row.started)
    done = [row for row in rows if row.state == "done"]
    if not done:
        reasons = "; ".join(row.reason for row in rows) or "the work was stopped"
        raise ArchiveError(f"No slide of the sample could be predicted: {reasons}")
    known = None if None in sizes else sum(size or 0 for size in sizes)

    def in_all(figure: Callable[[Row], float], of: Sequence[Row] = done) -> float:
        part = sum(figure(row) for row in of)
        if known:
            return part * known / sum(row.slide_bytes for row in of)
        return part * len(slides) / len(of)

    # a worker's first slide also loads the model and the libraries
    timed = [row for row in done if row is not rows[0]] or done
    hours = in_all(lambda row: row.wall_s / 3600, timed)
    return ArchiveEstimate(
        slides=len(slides),
        slide_bytes=known,
        sampled=len(rows),
        failed=len(rows) - len(done),
        windows=round(in_all(lambda row: row.windows)),
        worker_hours=hours,
        hours=hours / workers,
        result_bytes=round(in_all(lambda row: row.result_bytes)),
        peak_memory_bytes=max(row.peak_memory_bytes for row in done),
    )


def _size(path: str) -> int | None:
    file = Path(path)
    return file.stat().st_size if file.is_file() else None

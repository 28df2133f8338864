"""The record of a prediction: model, resolution, parameters, versions, times, warnings."""

from __future__ import annotations

import datetime as dt
import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil

from atlas_wsi.grid import Grid
from atlas_wsi.heatmap.heatmap import Heatmap
from atlas_wsi.heatmap.records import MAX_LISTED, ModelUsed, RunRecord, SlideInfo, Unreadable
from atlas_wsi.tissue.mask import TissueMask, tissue_mask

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from atlas_wsi.models.card import ModelCard
    from atlas_wsi.progress import CancelToken, Progress
    from atlas_wsi.slides.slide import Slide
    from atlas_wsi.streaming.working_image import WorkingImage

MIN_CELL_TISSUE = 0.2
"""Least fraction of tissue of a cell that is shown; cells with less are left empty."""

_VERSIONS = ("atlas-wsi", "torch", "numpy", "openslide-python", "tifffile", "rasterio", "zarr")


class Clock:
    """Seconds per stage."""

    def __init__(self) -> None:
        self.started = dt.datetime.now().astimezone().isoformat(timespec="seconds")
        self.stages: dict[str, float] = {}
        self._first = self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """End a stage."""
        now = time.perf_counter()
        self.stages[stage] = round(now - self._last, 3)
        self._last = now

    def total(self) -> float:
        """Return the seconds since the clock was made."""
        return round(time.perf_counter() - self._first, 3)


def find_mask(slide: Slide, report: Progress) -> TissueMask:
    """Find tissue and report progress."""
    report("find tissue", 0, 1)
    mask = tissue_mask(slide)
    report("find tissue", 1, 1)
    return mask


def empty_heatmap(
    image: WorkingImage,
    card: ModelCard,
    *,
    sha256: str,
    reason: str,
    cell_px: int,
    tissue: TissueMask,
    started: str,
) -> Heatmap:
    """Make a heatmap without predictions."""
    cells = Grid(
        shape=(-(-image.shape[0] // cell_px), -(-image.shape[1] // cell_px)),
        step_px=(image.grid.step_px[0] * cell_px, image.grid.step_px[1] * cell_px),
    )
    return Heatmap(
        probabilities=np.full((len(card.classes), *cells.shape), np.nan, dtype=np.float32),
        grid=cells,
        classes=card.class_names,
        colors=card.colors,
        scores={},
        tissue=tissue,
        slide=SlideInfo.of(image.slide),
        run=RunRecord(
            model=ModelUsed(name=card.name, version=card.version, sha256=sha256, reason=reason),
            mpp_asked=(card.mpp, card.mpp),
            mpp_used=image.mpp,
            started=started,
        ),
    )


def starting_warnings(image: WorkingImage, card: ModelCard) -> list[str]:
    """Collect warnings about a slide and a model, before any result."""
    warnings = [*image.slide.meta.warnings, *image.warnings]
    domain = "scene" if image.slide.is_georeferenced else "slide"
    if card.domain != domain:
        warnings.append(f"The model {card.name} was made for {card.domain}s, this is a {domain}.")
    return warnings


def finished(
    run: RunRecord,
    slide: Slide,
    clock: Clock,
    *,
    parameters: Mapping[str, object],
    warnings: Sequence[str],
) -> RunRecord:
    """Complete the record at the end of a run."""
    lost = slide.unreadable
    more = [f"{len(lost)} tiles could not be read and were replaced by background."] if lost else []
    return run.model_copy(
        update={
            "parameters": dict(parameters),
            "versions": _versions(),
            "wall_s": clock.total(),
            "stages_s": clock.stages,
            "peak_memory_bytes": peak_memory_bytes(),
            "warnings": (*warnings, *more),
            "n_unreadable": len(lost),
            "unreadable": _unreadable(slide),
        }
    )


def reporter(
    report: Progress, cancel: CancelToken, totals: Mapping[str, int]
) -> Callable[[str, int], None]:
    """Make a function that counts finished units, and stops when cancelled."""
    done = dict.fromkeys(totals, 0)

    def step(name: str, n: int) -> None:
        cancel.raise_if_cancelled()
        done[name] += n
        report(name, done[name], totals[name])

    return step


def _unreadable(slide: Slide) -> tuple[Unreadable, ...]:
    return tuple(
        Unreadable(
            level=tile.level,
            row=tile.box.row,
            col=tile.box.col,
            rows=tile.box.rows,
            cols=tile.box.cols,
            reason=tile.reason,
        )
        for tile in slide.unreadable[:MAX_LISTED]
    )


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _VERSIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def peak_memory_bytes() -> int:
    """Return the largest resident memory of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text(encoding="ascii").splitlines()
        for line in lines:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":  # pragma: no cover
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)

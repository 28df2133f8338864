"""The record of a prediction: model, resolution, parameters, versions, times, warnings."""

from __future__ import annotations

import datetime as dt
import platform
import sys
import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil

from atlas_wsi.errors import UnreadableSlideError
from atlas_wsi.grid import Grid
from atlas_wsi.heatmap.heatmap import Heatmap
from atlas_wsi.heatmap.records import MAX_LISTED, ModelUsed, RunRecord, SlideInfo, Unreadable
from atlas_wsi.inference.doubts import doubts
from atlas_wsi.streaming.working_image import open_working_image
from atlas_wsi.tissue.mask import MIN_CELL_TISSUE, TissueMask, tissue_mask

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from atlas_wsi.inference.attention import CoarseContext
    from atlas_wsi.models.model import Model
    from atlas_wsi.models.tile_classifier import TileClassifier
    from atlas_wsi.progress import CancelToken, Progress
    from atlas_wsi.slides.slide import Slide

_NOTHING_READ = 0.999
_VERSIONS = ("atlas-wsi", "torch", "numpy", "openslide-python", "tifffile", "rasterio", "zarr")


class RunningPrediction:
    """A prediction while it is computed: image, tissue, the heatmap without values, times."""

    def __init__(
        self,
        slide: Slide,
        model: Model | TileClassifier,
        *,
        reason: str,
        tissue: TissueMask | None,
        cell_px: int,
        report: Progress,
    ) -> None:
        self.started = dt.datetime.now().astimezone().isoformat(timespec="seconds")
        self._stages: dict[str, float] = {}
        self._first = self._last = time.perf_counter()
        card = model.card
        self.image = open_working_image(slide, mpp=card.mpp, white=card.white_reflectance)
        self.warnings = [*slide.meta.warnings, *self.image.warnings]
        domain = "scene" if slide.is_georeferenced else "slide"
        if card.domain != domain:
            self.warnings.append(
                f"The model {card.name} was made for {card.domain}s, this is a {domain}."
            )
        self._end_stage("open")
        if tissue is None:
            report("find tissue", 0, 1)
            tissue = tissue_mask(slide)
            report("find tissue", 1, 1)
        self.tissue = tissue
        self.unreadable_fraction = tissue.unreadable
        self.familiarity: float | None = None
        if tissue.unreadable > _NOTHING_READ:
            raise self._nothing_read()
        self._end_stage("tissue")
        self.heatmap = self._empty_heatmap(model, reason, cell_px)
        self.parameters: dict[str, object] = {
            "cell_px": cell_px,
            "tissue_method": tissue.method,
            "tissue_fraction": round(tissue.fraction, 6),
        }

    def wanted_cells(self) -> NDArray[np.bool_]:
        """Return which cells have enough tissue to be shown."""
        return self.tissue.coverage(self.heatmap.grid) >= MIN_CELL_TISSUE

    def leave_out(self, missing: NDArray[np.float32], unreadable: NDArray[np.float32]) -> None:
        """Take what was not observed out of the tissue.

        `missing`, `unreadable`: shares of the cells, float32 `(rows, cols)`. Raises
        `UnreadableSlideError` if nothing of the tissue could be read.
        """
        cells, fraction = self.heatmap.grid, 0.0
        if unreadable.any():
            tissue = self.tissue.coverage(cells)
            fraction = float((tissue * unreadable).sum() / max(float(tissue.sum()), 1e-12))
            if fraction > 0 and not (tissue * (missing < 1)).any():
                raise self._nothing_read()
        # where nothing was read, tissue is as likely as elsewhere
        fraction = 1 - (1 - self.tissue.unreadable) * (1 - fraction)
        self.unreadable_fraction = min(1.0, max(0.0, fraction))
        if (missing > 0.5).any():
            tissue_left = self.tissue.without(missing > 0.5, cells)
            self.heatmap = replace(self.heatmap, tissue=tissue_left)

    def finish(
        self,
        stage: str,
        probabilities: NDArray[np.float32],
        scores: Sequence[float],
        context: CoarseContext | None = None,
    ) -> Heatmap:
        """Return the heatmap; without scores, no tissue was found."""
        self._end_stage(stage)
        slide, empty = self.image.slide, self.heatmap
        if not scores:
            self.warnings.append("No tissue was found; the result is empty.")
        if self.unreadable_fraction > 0:
            self.warnings.append(
                f"{100 * self.unreadable_fraction:.3g}% of the tissue could not be read; it is in no "
                "class, area or score."
            )
        self.warnings += doubts(
            empty.run.model.name,
            empty.classes,
            probabilities,
            self.familiarity,
            self.image,
            empty.tissue,
        )
        run = empty.run.model_copy(
            update={
                "parameters": self.parameters,
                "versions": _versions(),
                "wall_s": round(self._last - self._first, 3),
                "stages_s": self._stages,
                "peak_memory_bytes": peak_memory_bytes(),
                "warnings": tuple(self.warnings),
                "familiarity": self.familiarity,
                "unreadable_fraction": self.unreadable_fraction,
                "n_unreadable": len(slide.unreadable),
                "unreadable": _unreadable(slide),
            }
        )
        return replace(
            empty,
            probabilities=probabilities,
            scores=dict(zip(empty.classes, scores, strict=True)) if scores else {},
            context=context,
            run=run,
        )

    def _nothing_read(self) -> UnreadableSlideError:
        return UnreadableSlideError(
            f"Nothing of the tissue of {self.image.slide.path} could be read.",
            hint="The file is damaged, or files that it refers to are missing: copy or download it "
            "again.",
        )

    def _end_stage(self, stage: str) -> None:
        now = time.perf_counter()
        self._stages[stage] = round(now - self._last, 3)
        self._last = now

    def _empty_heatmap(self, model: Model | TileClassifier, reason: str, cell_px: int) -> Heatmap:
        card, image = model.card, self.image
        cells = Grid(
            shape=(-(-image.shape[0] // cell_px), -(-image.shape[1] // cell_px)),
            step_px=(image.grid.step_px[0] * cell_px, image.grid.step_px[1] * cell_px),
        )
        used = ModelUsed(name=card.name, version=card.version, sha256=model.sha256, reason=reason)
        return Heatmap(
            probabilities=np.full((len(card.classes), *cells.shape), np.nan, dtype=np.float32),
            grid=cells,
            classes=card.class_names,
            colors=card.colors,
            scores={},
            tissue=self.tissue,
            slide=SlideInfo.of(image.slide),
            run=RunRecord(
                model=used,
                mpp_asked=(card.mpp, card.mpp),
                mpp_used=image.mpp,
                started=self.started,
            ),
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

"""The result of a prediction: class probabilities with their location and metadata."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from atlas_wsi.files import write_whole
from atlas_wsi.heatmap.formats import choose_formats
from atlas_wsi.heatmap.records import MAX_CLASSES, RunRecord, SlideInfo, Summary, record_files
from atlas_wsi.heatmap.result import SUMMARY, check_writable
from atlas_wsi.progress import silent
from atlas_wsi.tissue.mask import MIN_CELL_TISSUE

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from atlas_wsi.grid import Grid
    from atlas_wsi.progress import Progress
    from atlas_wsi.tissue.mask import TissueMask


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AttentionMap:
    """How much a cell attends to each token of a coarse scale."""

    weights: NDArray[np.float32]
    """float32 `(rows, cols)`, shares of the cell's whole attention."""
    grid: Grid
    """Location of those tokens on level 0."""


class Context(Protocol):
    """Attention of the cells of a predicted slide."""

    def attention(self, y: float, x: float) -> list[AttentionMap]:
        """Return the attention of the cell at level-0 row `y`, column `x`: one map per coarse scale."""


def most_probable(probabilities: NDArray[Any]) -> NDArray[np.int16]:
    """Return the index of the most probable class of each cell, -1 where a class is NaN."""
    known = ~np.isnan(probabilities).any(axis=0)
    winner = np.full(known.shape, -1, np.int16)
    # Compared as float16, the stored precision: a result read back gives the same classes.
    winner[known] = probabilities[:, known].astype(np.float16, copy=False).argmax(axis=0)
    return winner


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Heatmap:
    """Class probabilities over a slide, with all metadata needed to interpret them."""

    probabilities: NDArray[Any]
    """float16 or float32 `(class, row, col)`; NaN in all classes where nothing was predicted."""
    grid: Grid
    """Location of the cells on level 0."""
    classes: tuple[str, ...]
    """Name of each class."""
    colors: tuple[str, ...]
    """Color of each class, ``#rrggbb``."""
    scores: Mapping[str, float]
    """Probability of each class for the slide as a whole; empty if nothing was predicted."""
    tissue: TissueMask
    """The mask of what was predicted."""
    slide: SlideInfo
    """The slide."""
    run: RunRecord
    """How the result was made."""
    context: Context | None = None
    """Attention of the cells; only after `predict(..., context=True)`, never stored."""

    def __post_init__(self) -> None:
        expected = (len(self.classes), *self.grid.shape)
        if self.probabilities.shape != expected or self.probabilities.dtype.kind != "f":
            raise ValueError(
                f"Probabilities are {self.probabilities.dtype} {self.probabilities.shape}, "
                f"expected floats {expected} (class, row, col)."
            )
        if not 1 <= len(self.classes) == len(self.colors) <= MAX_CLASSES:
            raise ValueError(f"{len(self.classes)} classes and {len(self.colors)} colors.")

    @property
    def mpp(self) -> tuple[float, float]:
        """Micrometers per cell `(y, x)`."""
        (mpp_y, mpp_x), (step_y, step_x) = self.slide.mpp, self.grid.step_px
        return mpp_y * step_y, mpp_x * step_x

    @property
    def cell_edges(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Level-0 rows and columns of the edges between cells, clipped to the slide."""
        grid, (n_rows, n_cols) = self.grid, self.slide.shape
        y = grid.origin_px[0] + grid.step_px[0] * np.arange(grid.shape[0] + 1)
        x = grid.origin_px[1] + grid.step_px[1] * np.arange(grid.shape[1] + 1)
        return np.clip(y, 0, n_rows), np.clip(x, 0, n_cols)

    @property
    def area_unit(self) -> Literal["mm2", "m2"]:
        """Unit of `areas`: ``"mm2"`` for slides, ``"m2"`` for georeferenced scenes."""
        return "m2" if self.slide.is_georeferenced else "mm2"

    def argmax(self) -> NDArray[np.int16]:
        """Return the most probable class of each cell.

        Returns
        -------
        NDArray[np.int16]
            `(row, col)` index into `classes`, -1 where nothing was predicted.
        """
        return most_probable(self.probabilities)

    def areas(self, *, threshold: float = 0.0) -> dict[str, float]:
        """Measure the area of each class.

        Parameters
        ----------
        threshold
            Cells whose most probable class has less than this are not counted.

        Returns
        -------
        dict[str, float]
            Area in `area_unit` of the tissue (of a scene: of what was observed) in the cells in
            which each class is the most probable one.
        """
        winner = self.argmax()
        if threshold > 0:
            winner[~(self.probabilities.max(axis=0) >= threshold)] = -1
        per_mm2 = 1e12 if self.slide.is_georeferenced else 1e6
        pixel = self.slide.mpp[0] * self.slide.mpp[1] / per_mm2
        step_y, step_x = self.grid.step_px
        tissue = self.tissue.coverage(self.grid).astype(np.float64) * step_y * step_x
        inside = np.minimum(tissue, np.outer(*map(np.diff, self.cell_edges)))
        # tissue in cells with too little of it to be shown counts as that of the others
        is_shown = tissue >= MIN_CELL_TISSUE * step_y * step_x
        pixel *= inside.sum() / max(float(inside[is_shown].sum()), 1e-12) if is_shown.any() else 1.0
        winner, inside = winner[winner >= 0], inside[winner >= 0]
        return {
            name: float(inside[winner == k].sum()) * pixel for k, name in enumerate(self.classes)
        }

    def write(
        self,
        out_dir: str | os.PathLike[str],
        *,
        formats: Sequence[str] | None = None,
        thumbnail: NDArray[Any] | None = None,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> dict[str, Path]:
        """Write the result to a folder named after the slide, complete or not at all.

        Parameters
        ----------
        out_dir
            Parent of the slide's folder.
        formats
            Names of `RESULT_FORMATS`, or ``"json"``; None writes all that suit the slide.
        thumbnail
            Thumbnail of the whole slide, `(rows, cols, channels)` in its own dtype, for the overview.
        overwrite
            Whether an existing result is replaced.
        progress
            Receives how many files are written.

        Returns
        -------
        dict[str, Path]
            The file or folder of each format.
        """
        chosen = choose_formats(formats, is_scene=self.slide.is_georeferenced)
        report, n_steps = progress or silent, len(chosen) + 1
        folder = check_writable(out_dir, self.slide.name, overwrite=overwrite)
        with write_whole(folder, overwrite=overwrite) as partial:
            partial.mkdir()
            warnings: list[str] = []
            for done, form in enumerate(chosen.values()):
                report("write", done, n_steps)
                warnings += form.write(self, partial / form.file, thumbnail)
            report("write", len(chosen), n_steps)
            summary = Summary.of(self, warnings=warnings, files=record_files(partial))
            text = summary.model_dump_json(indent=2)
            (partial / SUMMARY).write_text(text + "\n", encoding="utf-8")
        report("write", n_steps, n_steps)
        return {name: folder / form.file for name, form in chosen.items()} | {
            "json": folder / SUMMARY
        }

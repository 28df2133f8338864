"""The result of a prediction: class probabilities that know where they lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from atlas_wsi.files import write_whole
from atlas_wsi.heatmap.formats import choose_formats
from atlas_wsi.heatmap.records import MAX_CLASSES, RunRecord, SlideInfo, Summary, record_files
from atlas_wsi.heatmap.result import SUMMARY, check_writable
from atlas_wsi.progress import silent

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
    """Where those tokens lie on level 0."""


class Context(Protocol):
    """What the cells of a predicted slide attend to."""

    def attention(self, y: float, x: float) -> list[AttentionMap]:
        """Tell what the cell at level-0 row `y`, column `x` attends to, one map a coarse scale."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Heatmap:
    """Class probabilities over a slide, and everything that says what they mean."""

    probabilities: NDArray[Any]
    """float16 or float32 `(class, row, col)`; NaN in all classes where nothing was predicted."""
    grid: Grid
    """Where the heatmap's cells lie on level 0."""
    classes: tuple[str, ...]
    """Name of each class."""
    colors: tuple[str, ...]
    """Color of each class, ``#rrggbb``."""
    scores: Mapping[str, float]
    """Probability of each class for the slide as a whole; empty if nothing was predicted."""
    tissue: TissueMask
    """The mask that chose what was predicted."""
    slide: SlideInfo
    """The slide."""
    run: RunRecord
    """How the result came about."""
    context: Context | None = None
    """What cells attend to; only after `predict(..., context=True)`, never stored."""

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
        """Micrometers a heatmap cell `(y, x)`."""
        return (
            self.slide.mpp[0] * self.grid.step_px[0],
            self.slide.mpp[1] * self.grid.step_px[1],
        )

    @property
    def area_unit(self) -> Literal["mm2", "m2"]:
        """Unit of `areas`: ``"mm2"`` for slides, ``"m2"`` for georeferenced scenes."""
        return "m2" if self.slide.is_georeferenced else "mm2"

    def argmax(self) -> NDArray[np.int16]:
        """Tell the most probable class of each cell.

        Returns
        -------
        NDArray[np.int16]
            `(row, col)` index into `classes`, -1 where nothing was predicted.
        """
        # Compared as float16, the stored precision: a result read back gives the same classes.
        stored = self.probabilities.astype(np.float16, copy=False)
        known = ~np.isnan(stored).any(axis=0)
        winner: NDArray[np.int16] = np.where(known, stored, 0).argmax(axis=0).astype(np.int16)
        winner[~known] = -1
        return winner

    def areas(self, *, threshold: float = 0.0) -> dict[str, float]:
        """Measure the area of each class.

        Parameters
        ----------
        threshold
            Cells whose most probable class has less than this are not counted.

        Returns
        -------
        dict[str, float]
            Area of the cells in which each class is the most probable one, as far as they lie on
            the slide, in `area_unit`.
        """
        rows, cols = (
            np.clip(
                np.minimum(start + step * (np.arange(n) + 1), size)
                - np.maximum(start + step * np.arange(n), 0),
                0,
                None,
            )
            for start, step, n, size in zip(
                self.grid.origin_px,
                self.grid.step_px,
                self.grid.shape,
                self.slide.shape,
                strict=True,
            )
        )
        winner = self.argmax()
        if threshold > 0:
            winner[~(self.probabilities.max(axis=0) >= threshold)] = -1
        per_mm2 = 1e12 if self.slide.is_georeferenced else 1e6
        pixel = self.slide.mpp[0] * self.slide.mpp[1] / per_mm2
        return {
            name: float(rows @ (winner == k) @ cols) * pixel for k, name in enumerate(self.classes)
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
            The whole slide in small, `(rows, cols, channels)` in its own dtype, for the overview.
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

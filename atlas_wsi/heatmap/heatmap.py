"""The result of a prediction: class probabilities that know where they lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, JsonValue

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from atlas_wsi.grid import Grid
    from atlas_wsi.progress import Progress
    from atlas_wsi.slides.slide import Slide
    from atlas_wsi.tissue.mask import TissueMask

MAX_CLASSES = 1000
MAX_LISTED = 1000
Positive = Annotated[float, Field(gt=0, le=1e18)]
Count = Annotated[int, Field(ge=0)]


class Record(BaseModel):
    """Something a result writes as JSON and reads back from an untrusted file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SlideInfo(Record):
    """What a result remembers of its slide."""

    name: Annotated[str, Field(min_length=1, max_length=1000)]
    """File name without suffix."""
    path: str
    """Absolute path or URL as opened."""
    shape: tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]]
    """Level-0 rows and columns."""
    mpp: tuple[Positive, Positive]
    """Micrometers a level-0 pixel `(y, x)`."""
    mpp_source: str = ""
    """Where the resolution was read, or ``"argument"``."""
    format: str = ""
    """Short name of the format, such as ``"aperio"``."""
    vendor: str = ""
    """Scanner's vendor."""
    magnification: float | None = None
    """Objective power of the scan."""
    crs: str | None = None
    """Coordinate reference system as WKT; None for slides."""
    transform: tuple[float, float, float, float, float, float] | None = None
    """Affine (a, b, c, d, e, f): CRS x = a*col + b*row + c, y = d*col + e*row + f (level 0)."""

    @classmethod
    def of(cls, slide: Slide) -> Self:
        """Take down what a result must remember of a slide."""
        return cls(
            name=slide.name,
            path=slide.path,
            shape=slide.shape,
            mpp=slide.require_mpp(),
            mpp_source=slide.mpp_source,
            format=slide.meta.format,
            vendor=slide.vendor,
            magnification=slide.magnification,
            crs=slide.crs,
            transform=slide.transform,
        )

    @property
    def is_georeferenced(self) -> bool:
        """Whether level-0 pixels have a place on Earth."""
        return self.crs is not None and self.transform is not None


class ModelUsed(Record):
    """Which model made a result."""

    name: str
    """Name in the registry, or the file's name."""
    version: str = ""
    """The card's version."""
    sha256: str = ""
    """Of the weights file."""
    reason: str = ""
    """Why this model was taken, in words."""


class Unreadable(Record):
    """A block of the slide that could not be decoded and was filled with background."""

    level: Count
    """Level of the file."""
    row: Count
    """First row in the level's pixels."""
    col: Count
    """First column in the level's pixels."""
    rows: Count
    """Rows of the block."""
    cols: Count
    """Columns of the block."""
    reason: str
    """What the decoder said."""


class Run(Record):
    """How a result came about."""

    model: ModelUsed
    """The model."""
    mpp_asked: tuple[Positive, Positive] | None = None
    """Working resolution that was asked for, micrometers `(y, x)`."""
    mpp_used: tuple[Positive, Positive] | None = None
    """Working resolution at which the encoder saw the slide, micrometers `(y, x)`."""
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    """Everything else that decides the result."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Version of each package that took part."""
    started: str = ""
    """When the run began, ISO 8601 with offset."""
    wall_s: Annotated[float, Field(ge=0)] = 0.0
    """Seconds from opening the slide to the heatmap."""
    stages_s: dict[str, float] = Field(default_factory=dict)
    """Seconds a stage."""
    peak_memory_bytes: Count = 0
    """Largest resident memory of the process."""
    warnings: tuple[str, ...] = ()
    """What the user may want to act on."""
    n_unreadable: Count = 0
    """How many blocks could not be decoded."""
    unreadable: Annotated[tuple[Unreadable, ...], Field(max_length=MAX_LISTED)] = ()
    """The first of them."""


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
    run: Run
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
        """Write the result to a folder named after the slide.

        Parameters
        ----------
        out_dir
            Where the slide's folder is made.
        formats
            Names of `atlas_wsi.heatmap.write.FORMATS`; None writes all that suit the slide.
        thumbnail
            The whole slide in small, `(rows, cols, channels)` in its own dtype, for the overview.
        overwrite
            Whether a result that is there is replaced.
        progress
            Told how many files are written.

        Returns
        -------
        dict[str, Path]
            The file or folder of each format.
        """
        from atlas_wsi.heatmap.write import write

        return write(
            self,
            out_dir,
            formats=formats,
            thumbnail=thumbnail,
            overwrite=overwrite,
            progress=progress,
        )

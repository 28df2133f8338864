"""State of every slide in an archive's output folder: one small file per slide, written atomically.

::

    OUT/
      <slide name>/          a result, as `atlas-wsi predict` writes it
      archive.parquet        one row per slide (atlas_wsi.batch.archive)
      .batch/
        options.json         what decides the results; the same for every launcher
        slides.jsonl         the requested slides, in order; grows, never shrinks
        rows/<name>.json     how a slide ended: a `Row`
        leases/<name>.<n>    the n-th attempt at a slide that has not ended (atlas_wsi.batch.lease)
        work/<name>/         encoded windows of a slide that has not ended

Nothing here needs a lock: a slide's row is written by the holder of its lease alone, and every
file is renamed into place when it is whole.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError

from atlas_wsi.errors import CorruptResultError
from atlas_wsi.files import write_text
from atlas_wsi.heatmap.records import Count, Positive, Record

if TYPE_CHECKING:
    import os


def _moment(text: str) -> str:
    if text and dt.datetime.fromisoformat(text).tzinfo is None:
        raise ValueError(f"{text} has no offset from UTC")
    return text


Seconds = Annotated[float, Field(ge=0)]
Moment = Annotated[str, AfterValidator(_moment)]
"""ISO 8601 with offset, or empty."""


class SlideRequest(Record):
    """A requested slide of the archive."""

    name: str
    """Name of its folder in the output folder; no two slides share one."""
    source: str
    """Absolute path or URL."""
    mpp: Positive | None = None
    """Micrometers per level-0 pixel, if the list of slides states it."""


class Row(Record):
    """How one slide of an archive, a `SlideRequest`, ended: a row of ``archive.parquet``."""

    schema_version: Literal[1] = 1
    """Raised when a reader of the old version would misread the new one."""
    name: str
    source: str
    state: Literal["done", "failed"]
    error: str = ""
    """Kind of the error, such as ``"UnreadableSlideError"``; ``"WorkerDied"`` for a slide whose
    worker died each time. Empty if done."""
    reason: str = ""
    """Why it failed, in words for the user. Empty if done."""
    attempts: Count = 1
    worker: str = ""
    """Host and process that ended it."""
    started: Moment = ""
    """When the last attempt started, ISO 8601 with offset."""
    ended: Moment = ""
    wall_s: Seconds = 0.0
    """Seconds of the last attempt, opening to writing."""
    peak_memory_bytes: Count = 0
    """Largest resident memory of the worker's process until then."""
    result_bytes: Count = 0
    """Bytes of all files of the result."""
    slide_bytes: Count = 0
    """Bytes of the slide's file; 0 where that is not known (folders, URLs)."""
    shape: tuple[Count, Count] | None = None
    """Level-0 rows and columns."""
    mpp: tuple[Positive, Positive] | None = None
    """Micrometers per level-0 pixel `(y, x)`."""
    mpp_source: str = ""
    """Where the resolution was read, or ``"argument"``."""
    mpp_used: tuple[Positive, Positive] | None = None
    """Working resolution at which the encoder saw the slide, micrometers `(y, x)`."""
    model: str = ""
    model_sha256: str = ""
    windows: Count = 0
    tissue_fraction: Annotated[float, Field(ge=0, le=1)] | None = None
    area_unit: Literal["mm2", "m2"] | None = None
    predicted_area: Annotated[float, Field(ge=0)] | None = None
    """Area of the cells for which there is a prediction."""
    areas: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """Area where each class is the most probable one."""
    scores: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(default_factory=dict)
    """Probability of each class for the slide as a whole."""
    familiarity: Annotated[float, Field(ge=0, le=1)] | None = None
    """Part of the tissue that is like the images that the model was trained on."""
    unreadable_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Part of the tissue that could not be read."""
    is_incomplete: bool = False
    """Whether that is more than was allowed."""
    n_unreadable: Count = 0
    """How many blocks could not be decoded."""
    warnings: tuple[str, ...] = ()


class Journal:
    """The records in an archive's output folder."""

    def __init__(self, out: str | os.PathLike[str]) -> None:
        self.out = Path(out)
        self.folder = self.out / ".batch"
        self.options_file = self.folder / "options.json"
        self.slides_file = self.folder / "slides.jsonl"
        self.rows_folder = self.folder / "rows"
        self.leases_folder = self.folder / "leases"
        self.work_folder = self.folder / "work"

    def stop_file(self, run: str) -> Path:
        """Name the file that makes the workers of a launcher stop."""
        return self.folder / f"stop-{run}"

    @property
    def exists(self) -> bool:
        """Whether the folder holds an archive."""
        return self.slides_file.is_file()

    def make_folders(self) -> None:
        """Make missing folders."""
        for folder in (self.rows_folder, self.leases_folder, self.work_folder):
            folder.mkdir(parents=True, exist_ok=True)

    def read_slides(self) -> list[SlideRequest]:
        """Read the requested slides."""
        if not self.exists:
            return []
        lines = self.slides_file.read_bytes().splitlines()
        try:
            return [SlideRequest.model_validate_json(line) for line in lines]
        except ValidationError as error:
            raise CorruptResultError(
                f"{self.slides_file} is not a list of slides: {error.errors()[0]['msg']}."
            ) from error

    def write_slides(self, slides: list[SlideRequest]) -> None:
        """Write the requested slides."""
        lines = [slide.model_dump_json(exclude_none=True) + "\n" for slide in slides]
        write_text(self.slides_file, "".join(lines))

    def read_rows(self) -> dict[str, Row]:
        """Read how slides ended."""
        rows = (_read_row(path) for path in sorted(self.rows_folder.glob("*.json")))
        return {row.name: row for row in rows if row is not None}

    def row(self, name: str) -> Row | None:
        """Read how a slide ended."""
        return _read_row(self._row_file(name))

    def ended(self) -> set[str]:
        """List which slides ended, well or not, without reading how."""
        return {path.name.removesuffix(".json") for path in self.rows_folder.glob("*.json")}

    def write_row(self, row: Row) -> None:
        """Record how a slide ended."""
        write_text(self._row_file(row.name), row.model_dump_json(indent=1) + "\n")

    def remove_row(self, name: str) -> None:
        """Remove the outcome of a slide, so that it is repeated."""
        self._row_file(name).unlink(missing_ok=True)

    def _row_file(self, name: str) -> Path:
        return self.rows_folder / f"{name}.json"


def _read_row(path: Path) -> Row | None:
    """Read a row; a damaged one counts as missing, and is made again."""
    try:
        return Row.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def now() -> str:
    """Return the time."""
    return dt.datetime.now().astimezone().isoformat(timespec="milliseconds")

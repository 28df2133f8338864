"""The metadata of a result: ``summary.json`` and the record inside the OME-Zarr."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    model_validator,
)

from atlas_wsi.files import sha256_of
from atlas_wsi.grid import Grid

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from atlas_wsi.heatmap.heatmap import Heatmap
    from atlas_wsi.slides.slide import Slide

MAX_CLASSES = 1000
MAX_LISTED = 1000
Positive = Annotated[float, Field(gt=0, le=1e18)]
Count = Annotated[int, Field(ge=0)]
Color = Annotated[str, StringConstraints(pattern=r"^#[0-9a-fA-F]{6}$")]
Side = Annotated[int, Field(gt=0, le=1_000_000)]
Share = Annotated[float, Field(ge=0, le=1)]


def _inside_folder(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or parts[0] == "/" or ".." in parts or "\\" in path or ":" in path:
        raise ValueError("is not a path inside the folder")
    return path


class Record(BaseModel):
    """Metadata that is written as JSON and read back from an untrusted file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SlideInfo(Record):
    """The slide of a result."""

    name: Annotated[str, Field(min_length=1, max_length=1000)]
    path: str
    """Absolute path or URL as opened."""
    shape: tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]]
    """Level-0 rows and columns."""
    mpp: tuple[Positive, Positive]
    """Micrometers per level-0 pixel `(y, x)`."""
    mpp_source: str = ""
    """Where the resolution was read, or ``"argument"``."""
    image: Annotated[int, Field(ge=0)] | None = None
    """Number of the image that was chosen, of those in the file; None for the default."""
    allow_truncated: bool = False
    """Whether a file whose end is missing was read as far as it goes."""
    format: str = ""
    vendor: str = ""
    magnification: float | None = None
    """Objective power of the scan."""
    crs: str | None = None
    """Coordinate reference system as WKT; None for slides."""
    transform: tuple[float, float, float, float, float, float] | None = None
    """Affine (a, b, c, d, e, f): CRS x = a*col + b*row + c, y = d*col + e*row + f (level 0)."""

    @classmethod
    def of(cls, slide: Slide) -> Self:
        """Record a slide, which must state its resolution."""
        names = set(cls.model_fields) - {"mpp", "format"}
        facts = {name: getattr(slide, name) for name in names}
        return cls(mpp=slide.require_mpp(), format=slide.meta.format, **facts)

    @property
    def opening(self) -> dict[str, Any]:
        """The arguments of `open_slide` with which the same pixels are read again."""
        return self.model_dump(include={"mpp", "image", "allow_truncated"})

    @property
    def is_georeferenced(self) -> bool:
        """Whether level-0 pixels have coordinates on Earth."""
        return self.crs is not None and self.transform is not None


class ModelUsed(Record):
    """The model that made a result."""

    name: str
    version: str = ""
    sha256: str = ""
    reason: str = ""
    """Why this model was chosen, in words."""


class Unreadable(Record):
    """A block of the slide that could not be decoded."""

    level: Count
    row: Count
    col: Count
    rows: Count
    cols: Count
    reason: str


class RunRecord(Record):
    """How a result was made."""

    model: ModelUsed
    mpp_asked: tuple[Positive, Positive] | None = None
    """Requested working resolution, micrometers per pixel `(y, x)`."""
    mpp_used: tuple[Positive, Positive] | None = None
    """Working resolution of the encoder, micrometers per pixel `(y, x)`."""
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    """All other settings that determine the result."""
    versions: dict[str, str] = Field(default_factory=dict)
    started: str = ""
    wall_s: Annotated[float, Field(ge=0)] = 0.0
    """Seconds from opening the slide to the heatmap."""
    stages_s: dict[str, float] = Field(default_factory=dict)
    peak_memory_bytes: Count = 0
    """Largest resident memory of the process."""
    warnings: tuple[str, ...] = ()
    familiarity: Share | None = None
    """Part of the tissue that is like the images that the model was trained on; null if unknown."""
    unreadable_fraction: Share = 0.0
    """Part of the tissue that could not be read: it is in no class, area or score."""
    is_incomplete: bool = False
    """Whether that is more than was allowed."""
    n_unreadable: Count = 0
    unreadable: Annotated[tuple[Unreadable, ...], Field(max_length=MAX_LISTED)] = ()
    """The first of them."""


class GridRecord(Record):
    """A grid of cells over level-0 pixels."""

    shape: tuple[Side, Side]
    step_px: tuple[Positive, Positive]
    """Level-0 pixels per cell `(y, x)`."""
    origin_px: tuple[float, float]
    """Level-0 position `(y, x)` of the first cell's corner."""

    @classmethod
    def of(cls, grid: Grid) -> Self:
        """Record a grid."""
        return cls.model_validate(grid, from_attributes=True)

    @property
    def grid(self) -> Grid:
        """The grid."""
        return Grid(shape=self.shape, step_px=self.step_px, origin_px=self.origin_px)


class ClassRecord(Record):
    """A class of the model."""

    name: Annotated[str, Field(max_length=1000)]
    color: Color


class HeatmapRecord(Record):
    """A heatmap without its arrays; ``attributes.atlas`` of the OME-Zarr."""

    schema_version: Literal[1] = 1
    """Incremented when a reader of the old version would misread the new one."""
    classes: Annotated[tuple[ClassRecord, ...], Field(min_length=1, max_length=MAX_CLASSES)]
    scores: dict[str, Share]
    cells: GridRecord
    tissue_method: str
    tissue_cells: GridRecord
    slide: SlideInfo
    run: RunRecord

    @model_validator(mode="after")
    def _scores_name_classes(self) -> Self:
        unknown = set(self.scores) - {c.name for c in self.classes}
        if unknown:
            raise ValueError(f"scores of unknown classes: {sorted(unknown)}")
        return self

    @classmethod
    def of(cls, heatmap: Heatmap) -> Self:
        """Record a heatmap."""
        return cls(
            classes=tuple(
                ClassRecord(name=n, color=c)
                for n, c in zip(heatmap.classes, heatmap.colors, strict=True)
            ),
            scores=dict(heatmap.scores),
            cells=GridRecord.of(heatmap.grid),
            tissue_method=heatmap.tissue.method,
            tissue_cells=GridRecord.of(heatmap.tissue.grid),
            slide=heatmap.slide,
            run=heatmap.run,
        )


class ClassSummary(ClassRecord):
    """The result of a class."""

    area: Annotated[float, Field(ge=0)]
    """Area where the class is the most probable one."""
    share: Share
    score: Share | None
    """Probability for the slide as a whole; null if nothing was predicted."""


class FileRecord(Record):
    """A file as it was written."""

    bytes: Count
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Summary(Record):
    """``summary.json``: written last, so a folder that has one is complete."""

    kind: Literal["atlas-wsi result"] = "atlas-wsi result"
    schema_version: Literal[1] = 1
    """Incremented when a reader of the old version would misread the new one."""
    slide: SlideInfo
    classes: tuple[ClassSummary, ...]
    area_unit: Literal["mm2", "m2"]
    predicted_area: Annotated[float, Field(ge=0)]
    """Area of the cells for which there is a prediction."""
    tissue_fraction: Share
    """Part of the slide that is tissue (of a scene: that was observed)."""
    cell_mpp: tuple[Positive, Positive]
    """Micrometers per heatmap cell `(y, x)`."""
    cells: GridRecord
    run: RunRecord
    warnings: tuple[str, ...]
    files: dict[Annotated[str, AfterValidator(_inside_folder)], FileRecord]
    """Every other file of the result by its path in the folder."""

    @classmethod
    def of(cls, heatmap: Heatmap, *, warnings: Iterable[str], files: dict[str, FileRecord]) -> Self:
        """Summarize a heatmap."""
        areas = heatmap.areas()
        total = sum(areas.values())
        return cls(
            slide=heatmap.slide,
            classes=tuple(
                ClassSummary(
                    name=name,
                    color=color,
                    area=areas[name],
                    share=min(1.0, areas[name] / total) if total else 0.0,
                    score=heatmap.scores.get(name),
                )
                for name, color in zip(heatmap.classes, heatmap.colors, strict=True)
            ),
            area_unit=heatmap.area_unit,
            predicted_area=total,
            tissue_fraction=heatmap.tissue.fraction,
            cell_mpp=heatmap.mpp,
            cells=GridRecord.of(heatmap.grid),
            run=heatmap.run,
            warnings=tuple(dict.fromkeys((*heatmap.run.warnings, *warnings))),
            files=files,
        )


def record_files(folder: Path) -> dict[str, FileRecord]:
    """Hash every file below a folder."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    return {path.relative_to(folder).as_posix(): record_file(path) for path in paths}


def record_file(path: Path) -> FileRecord:
    """Hash a file."""
    return FileRecord(bytes=path.stat().st_size, sha256=sha256_of(path))

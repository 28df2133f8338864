"""Tables of whole slides with one label each, and where their tissue is."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from atlas_wsi.errors import DatasetError
from atlas_wsi.files import read_csv
from atlas_wsi.grid import Box
from atlas_wsi.slides.open import open_slide
from atlas_wsi.slides.resolution import parse_gsd
from atlas_wsi.streaming.working_image import open_working_image
from atlas_wsi.tissue.mask import tissue_mask
from atlas_wsi.tissue.windows import plan_windows
from atlas_wsi.training.cards import digest_of

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from atlas_wsi.progress import Progress
    from atlas_wsi.tissue.mask import TissueMask

Part = Literal["train", "validation", "test"]

_PARTS: dict[str, Part] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "val": "validation",
    "test": "test",
    "held-out": "test",
    "held_out": "test",
}
_MAX_WINDOWS = 64  # that colors and batch norms are measured on


@dataclass(frozen=True, slots=True, kw_only=True)
class LabeledSlide:
    """A slide, its label, and the patient that it belongs to."""

    slide: str
    """File or URL."""
    label: str
    """Name of its class."""
    group: str
    """Slides of one group are kept in one part of a split."""
    part: Part | None
    """Part of the split that the table states; None if it has no such column."""
    opening: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `open_slide`: what the file does not state."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SlideTable:
    """Slides with a class and a group each, and where their tissue is."""

    unit: ClassVar[str] = "slides"
    facts: ClassVar[dict[str, Any]] = {}

    rows: tuple[LabeledSlide, ...]
    """The rows of the table."""
    classes: tuple[str, ...]
    """Names of the labels, sorted."""
    windows: int = 16
    """Fine windows per slide that keep a gradient."""
    batch: int = 4
    """Slides per step."""
    memory: int | str = "4GB"
    """Memory for the pass over a slide, besides the gradient's, as in `predict`."""
    masks: tuple[TissueMask, ...] = ()
    """Tissue of each slide; empty until `prepared`."""
    mpp: float | None = None
    """Micrometers per pixel that a model sees."""
    seed: int = 0
    """Decides which windows are in `images`."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def arguments(self) -> dict[str, int]:
        """How much a step learns from."""
        return {"windows": self.windows, "batch": self.batch}

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """`(N,)` index into `classes`."""
        return np.array([self.classes.index(row.label) for row in self.rows], dtype=np.int64)

    @property
    def groups(self) -> tuple[str, ...]:
        """`N` names."""
        return tuple(row.group for row in self.rows)

    @property
    def paths(self) -> tuple[str, ...]:
        """`N` files or URLs."""
        return tuple(row.slide for row in self.rows)

    @property
    def fingerprint(self) -> str:
        """Digest of the slides."""
        return digest_of(self.paths, [row.label for row in self.rows])

    @property
    def is_grouped(self) -> bool:
        """Whether some slides share a group."""
        return len(set(self.groups)) < len(self)

    @property
    def is_split(self) -> bool:
        """Whether the table states the part of each slide."""
        return self.rows[0].part is not None

    def part(self, name: Part) -> NDArray[np.int64]:
        """Return the slides of a part of the split that the table states."""
        return np.flatnonzero([row.part == name for row in self.rows])

    @cached_property
    def images(self) -> NDArray[np.uint8]:
        """A sample of windows with tissue, to measure colors and batch norms on."""
        assert self.mpp is not None, "of `prepared` slides"
        rng = np.random.default_rng(self.seed)
        images: list[NDArray[np.uint8]] = []
        order = rng.permutation(len(self))[:_MAX_WINDOWS]
        for i in order:
            with open_slide(self.rows[i].slide, **self.rows[i].opening) as slide:
                image = open_working_image(slide, mpp=self.mpp)
                mpp = slide.require_mpp()
                grid = plan_windows(slide.shape, mpp, self.masks[i], mpp=image.mpp)
                corners = rng.permutation(np.argwhere(grid.active)) * grid.window_px
                for row, col in corners[: -(-_MAX_WINDOWS // len(order))]:
                    side = grid.window_px
                    box = Box(row=int(row), col=int(col), rows=side, cols=side)
                    part = image.read(box.clip(image.shape))
                    after = [(0, side - n) for n in part.shape[:2]]
                    images.append(np.pad(part, (*after, (0, 0)), mode="symmetric"))
        return np.stack(images)

    def subset(self, which: NDArray[np.int64]) -> SlideTable:
        """Return some of the slides."""
        rows, masks = (tuple(items[i] for i in which if items) for items in (self.rows, self.masks))
        return replace(self, rows=rows, masks=masks)

    def prepared(
        self, *, mpp: float | None = None, seed: int = 0, progress: Progress | None = None
    ) -> SlideTable:
        """Find the tissue of the slides."""
        if mpp is None:
            raise ValueError("labeled slides need the resolution that the model sees")
        if len(self.classes) < 2:
            raise DatasetError(
                f"All {len(self)} slides have the label {self.classes[0]}; "
                "two or more labels are needed."
            )
        masks = []
        for done, row in enumerate(self.rows, start=1):
            with open_slide(row.slide, **row.opening) as slide:
                slide.require_mpp()
                masks.append(tissue_mask(slide))
            if not masks[-1].mask.any():
                raise DatasetError(
                    f"No tissue was found on {row.slide}.", hint="Remove it from the table."
                )
            if progress is not None:
                progress("find tissue", done, len(self))
        return replace(self, masks=tuple(masks), mpp=mpp, seed=seed)


def read_slide_table(
    path: str | os.PathLike[str],
    *,
    mpp: float | None = None,
    scale: tuple[float, float] | None = None,
    image: int | None = None,
    allow_truncated: bool = False,
    windows: int = 16,
    batch: int = 4,
    memory: int | str = "4GB",
) -> SlideTable:
    """Read a table of whole slides with one label each.

    Parameters
    ----------
    path
        CSV with the columns slide, label and optionally group (such as the patient), split (train,
        validation or test) and mpp or gsd. Paths are relative to its folder.
    mpp
        Micrometers per pixel of slides whose file and row do not state them.
    scale
        As for `open_slide`, for all slides.
    image
        As for `open_slide`, for all slides.
    allow_truncated
        As for `open_slide`, for all slides.
    windows
        Fine windows per slide that a training step learns from.
    batch
        Slides per training step.
    memory
        Memory for the pass over a slide, besides the gradient's.

    Returns
    -------
    SlideTable
        For `atlas_wsi.train`, `atlas_wsi.cross_validate` and `atlas_wsi.evaluate`.

    Raises
    ------
    DatasetError
        If the table cannot be read, lists a slide twice, or has a group in two parts of the split.
    """
    path = Path(path)
    opening = {"scale": scale, "image": image, "allow_truncated": allow_truncated}
    rows: list[LabeledSlide] = []
    for number, row in enumerate(read_rows(path, ("slide", "label")), start=2):
        part = row.get("split", "").lower()
        if part not in _PARTS and "split" in row:
            raise DatasetError(
                f"{path}, line {number}: the split is '{part}', expected train, validation or test."
            )
        rows.append(
            LabeledSlide(
                slide=find_file(path, row["slide"]),
                label=row["label"],
                group=row.get("group") or row["slide"],
                part=_PARTS.get(part),
                opening={**opening, "mpp": pixel_size_in(row, path, number) or mpp},
            )
        )
    names = [row.slide for row in rows]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DatasetError(f"{path} lists {twice} twice.")
    part_of: dict[str, Part | None] = {}
    for slide in rows:
        if part_of.setdefault(slide.group, slide.part) != slide.part:
            raise DatasetError(
                f"{path}: slides of the group {slide.group} are in two parts of the split.",
                hint="Keep all slides of a patient in one part.",
            )
    return SlideTable(
        rows=tuple(rows),
        classes=tuple(sorted({row.label for row in rows})),
        windows=windows,
        batch=batch,
        memory=memory,
    )


def read_rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Read a CSV table with a header."""
    _, rows = read_csv(path, columns)
    if not rows:
        raise DatasetError(f"{path} lists no slides.")
    for number, row in enumerate(rows, start=2):
        empty = [name for name in columns if not row[name]]
        if empty:
            raise DatasetError(f"{path}, line {number}: the column {empty[0]} is empty.")
    return rows


def find_file(table: Path, name: str) -> str:
    """Find a file that a table names."""
    if "://" in name:
        return name
    path = table.parent / name
    if not path.exists():
        raise DatasetError(
            f"{table} names {name}, but {path} does not exist.",
            hint="Paths in a table are relative to its folder.",
        )
    return str(path)


def pixel_size_in(row: Mapping[str, str], table: Path, number: int) -> float | None:
    """Read the columns mpp or gsd of a row, as micrometers per pixel."""
    mpp, gsd = row.get("mpp", ""), row.get("gsd", "")
    if mpp and gsd:
        raise DatasetError(f"{table}, line {number}: mpp and gsd are both given; one is enough.")
    if not mpp and not gsd:
        return None
    try:
        size = float(mpp) if mpp else parse_gsd(gsd)
    except ValueError as error:
        raise DatasetError(f"{table}, line {number}: {error}.") from error
    if not 0 < size < float("inf"):
        raise DatasetError(f"{table}, line {number}: mpp is {mpp}, expected a number above 0.")
    return size

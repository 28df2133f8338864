"""Tables that tell what slides show, and what each slide is for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from atlas_wsi.errors import DatasetError
from atlas_wsi.files import read_csv
from atlas_wsi.training.fitting import Parts
from atlas_wsi.training.marks import marks_of, trained_on

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from atlas_wsi.models.card import ModelCard

Part = Literal["train", "validation", "held-out"]

_PARTS: dict[str, Part] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "val": "validation",
    "held-out": "held-out",
    "held_out": "held-out",
    "test": "held-out",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LabeledSlide:
    """A slide, what it shows, and the patient it is of."""

    slide: str
    """File or URL."""
    label: str
    """Name of its class."""
    group: str
    """Slides of one group are kept on one side of a split."""
    part: Part | None
    """What the table says it is for; None if it does not."""


def read_rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Read a CSV table with a heading."""
    _, rows = read_csv(path, columns)
    if not rows:
        raise DatasetError(f"{path} lists no slides.")
    for number, row in enumerate(rows, start=2):
        empty = [name for name in columns if not row[name]]
        if empty:
            raise DatasetError(f"{path}, line {number}: the column {empty[0]} is empty.")
    return rows


def find(path: Path, name: str) -> str:
    """Find a slide that a table names."""
    if "://" in name:
        return name
    found = path.parent / name
    if not found.exists():
        raise DatasetError(
            f"{path} names {name}, and there is no {found}.",
            hint="Paths in a table are relative to its folder.",
        )
    return str(found)


def read_slides(path: str | os.PathLike[str]) -> list[LabeledSlide]:
    """Read a table of slides and their labels."""
    path = Path(path)
    found = []
    for number, row in enumerate(read_rows(path, ("slide", "label")), start=2):
        given = (row.get("split") or "").strip().lower()
        if given not in _PARTS and "split" in row:
            raise DatasetError(
                f"{path}, line {number}: the split is '{given}', expected train, validation or "
                "held-out."
            )
        found.append(
            LabeledSlide(
                slide=find(path, row["slide"].strip()),
                label=row["label"].strip(),
                group=(row.get("group") or row["slide"]).strip(),
                part=_PARTS.get(given),
            )
        )
    names = [one.slide for one in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DatasetError(f"{path} lists {twice} twice.")
    sides: dict[str, Part | None] = {}
    for one in found:
        if sides.setdefault(one.group, one.part) != one.part:
            raise DatasetError(
                f"{path}: slides of the group {one.group} are on two sides of the split.",
                hint="Keep all slides of a patient on one side.",
            )
    return found


def is_split(slides: Sequence[LabeledSlide]) -> bool:
    """Tell whether the table says what slides are for."""
    return slides[0].part is not None


def held_out(slides: Sequence[LabeledSlide], card: ModelCard) -> NDArray[np.int64]:
    """Return the slides that the table holds out, none of which the model was trained on."""
    asked = np.flatnonzero([one.part == "held-out" for one in slides])
    if not len(asked):
        raise DatasetError(
            "The table marks no slide as held-out.", hint="Measure on all of it with --split all."
        )
    paths = [one.slide for one in slides if one.part == "held-out"]
    known = trained_on(card.training)
    seen = [path for path, mark in zip(paths, marks_of(paths), strict=True) if mark in known]
    if seen:
        raise DatasetError(
            f"{card.name} was trained on {len(seen)} of the {len(asked)} slides that the table holds "
            f"out, such as {seen[0]}.",
            hint="Give the table that it was trained with; --split all measures on all the same.",
        )
    return asked


def given_parts(slides: Sequence[LabeledSlide]) -> Parts | None:
    """Return what the table says that slides are for."""
    if not is_split(slides):
        return None
    left = set(class_names(slides)) - {one.label for one in slides if one.part == "train"}
    if left:
        raise DatasetError(f"No slide of {', '.join(sorted(left))} is marked for training.")
    known, chosen, asked = (
        np.flatnonzero([one.part == part for one in slides])
        for part in ("train", "validation", "held-out")
    )
    return Parts(known=known, chosen=chosen, asked=asked)


def class_names(slides: Sequence[LabeledSlide]) -> tuple[str, ...]:
    """Return the labels that occur."""
    return tuple(sorted({one.label for one in slides}))

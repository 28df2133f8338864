"""Divide labeled data: training, validation and test parts, or folds, always by whole groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from atlas_wsi.errors import DatasetError
from atlas_wsi.training.data.slide_table import SlideTable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from numpy.typing import NDArray

    from atlas_wsi.training.data.labeled import Labeled, LabeledData

_MAX_DRAWS = 1000
_MAX_FOLD_DRAWS = 200


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Split:
    """Which tiles or slides a model is trained, selected and measured on."""

    train: NDArray[np.int64]
    """Indices of the training part."""
    validation: NDArray[np.int64]
    """Indices that select the weights and fit the temperature; may be empty."""
    test: NDArray[np.int64]
    """Indices that the model is measured on, once; may be empty."""


def split(data: Labeled, *, test: float, validation: float, seed: int) -> Split:
    """Divide data into training, validation and test parts, class by class and by whole groups."""
    known, measured = split_two(data, fraction=test, seed=seed)
    return _with_validation(data, known, measured, validation, seed)


def fold_split(
    data: Labeled, fold_of: NDArray[np.int64], fold: int | None, *, validation: float, seed: int
) -> Split:
    """Return the parts of a fold; without a fold all is for training."""
    is_test = fold_of == (-1 if fold is None else fold)
    return _with_validation(
        data, np.flatnonzero(~is_test), np.flatnonzero(is_test), validation, seed
    )


def _with_validation(
    data: Labeled,
    known: NDArray[np.int64],
    test: NDArray[np.int64],
    validation: float,
    seed: int,
) -> Split:
    if not validation:
        return Split(train=known, validation=np.empty(0, np.int64), test=test)
    rest, chosen = split_two(data.subset(known), fraction=validation, seed=seed + 1)
    return Split(train=known[rest], validation=known[chosen], test=test)


def table_split(data: LabeledData) -> Split | None:
    """Return the split that a table of slides states, if it does."""
    if not isinstance(data, SlideTable) or not data.is_split:
        return None
    left = set(data.classes) - {row.label for row in data.rows if row.part == "train"}
    if left:
        raise DatasetError(f"No slide of {', '.join(sorted(left))} is marked for training.")
    return Split(
        train=data.part("train"), validation=data.part("validation"), test=data.part("test")
    )


def recorded_split(data: Labeled, facts: Mapping[str, Any]) -> Split:
    """Repeat the split that a card records."""
    seed, validation = int(facts["seed"]), float(facts.get("validation_fraction", 0))
    if "fold" not in facts:
        return split(data, test=float(facts["test_fraction"]), validation=validation, seed=seed)
    fold_of = make_folds(data, n=int(facts["folds"]), seed=seed)
    return fold_split(data, fold_of, int(facts["fold"]), validation=validation, seed=seed)


def split_two(
    data: Labeled, *, fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Take a fraction of the groups of every class out; return the rest and what was taken."""
    rng = np.random.default_rng(seed)
    classes_of: dict[str, set[int]] = {}
    for group, label in zip(data.groups, data.labels.tolist(), strict=True):
        classes_of.setdefault(group, set()).add(label)
    draw = _draw_mixed if any(len(of) > 1 for of in classes_of.values()) else _draw_pure
    drawn = draw(data, classes_of, fraction, rng)
    is_drawn = np.array([group in drawn for group in data.groups])
    return np.flatnonzero(~is_drawn), np.flatnonzero(is_drawn)


def _draw_pure(
    data: Labeled, classes_of: dict[str, set[int]], fraction: float, rng: np.random.Generator
) -> set[str]:
    """Draw groups class by class."""
    drawn: set[str] = set()
    for label, name in enumerate(data.classes):
        groups = sorted(group for group, classes in classes_of.items() if label in classes)
        n = round(len(groups) * fraction)
        if not 0 < n < len(groups):
            raise DatasetError(
                f"The class {name} has {len(groups)} groups; a split with {fraction:.0%} of them "
                "leaves one part empty."
            )
        drawn.update(rng.permutation(groups)[:n].tolist())
    return drawn


def _draw_mixed(
    data: Labeled, classes_of: dict[str, set[int]], fraction: float, rng: np.random.Generator
) -> set[str]:
    """Draw groups of several classes, such as slides, so that both parts have every class."""
    groups = sorted(classes_of)
    n = round(len(groups) * fraction)
    everything = set(range(len(data.classes)))
    for _ in range(_MAX_DRAWS if 0 < n < len(groups) else 0):
        drawn = set(rng.permutation(groups)[:n].tolist())
        parts = (drawn, set(groups) - drawn)
        if all(set().union(*(classes_of[g] for g in part)) == everything for part in parts):
            return drawn
    raise DatasetError(
        f"No {fraction:.0%} of the {len(groups)} groups leave every class in both parts.",
        hint="Label every class in more groups (slides, patients), or use another fraction.",
    )


def make_folds(data: Labeled, *, n: int, seed: int) -> NDArray[np.int64]:
    """Divide data into folds by whole groups so that every fold has every class."""
    if n < 2:
        raise ValueError(f"{n} folds; expected 2 or more")
    names, group = np.unique(np.array(data.groups), return_inverse=True)
    counts = np.zeros((len(names), len(data.classes)), np.int64)
    np.add.at(counts, (group, data.labels), 1)
    n_groups = (counts > 0).sum(axis=0)
    if n_groups.min() < n:
        rare = int(n_groups.argmin())
        raise DatasetError(
            f"The class {data.classes[rare]} has {n_groups[rare]} groups, fewer than {n} folds.",
            hint="Ask for fewer folds, or label that class in more groups (slides, patients).",
        )
    rng = np.random.default_rng(seed)
    is_pure = bool(((counts > 0).sum(axis=1) == 1).all())
    for draw in range(1 if is_pure else _MAX_FOLD_DRAWS):
        size = counts.sum(axis=1) * (1 if draw == 0 else rng.uniform(0.3, 1, len(counts)))
        fold_of_group, held = _assign(counts, np.lexsort((rng.random(len(counts)), -size)), n)
        if (held > 0).all():
            return fold_of_group[group]
    raise DatasetError(
        f"No way was found to give each of {n} folds whole groups of every class.",
        hint="Ask for fewer folds, or label every class in more groups (slides, patients).",
    )


def _assign(
    counts: NDArray[np.int64], order: NDArray[np.int64], n: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Assign groups `(groups, classes)` to folds; return each one's fold and `(folds, classes)`."""
    share = counts / counts.sum(axis=0)
    rarity = 1 / (counts > 0).sum(axis=0)
    fold_of = np.empty(len(counts), np.int64)
    held, held_share = np.zeros((n, counts.shape[1]), np.int64), np.zeros((n, counts.shape[1]))
    for group in order:
        has = counts[group] > 0
        lacked = np.round(((held[:, has] == 0) * rarity[has]).sum(axis=1), 9)
        # products of BLAS differ in the last bit from one machine and number of threads to another
        crowded = np.round(held_share[:, has] @ share[group, has], 9)
        fold = int(np.lexsort((held.sum(axis=1), crowded, -lacked))[0])
        fold_of[group] = fold
        held[fold] += counts[group]
        held_share[fold] += share[group]
    return fold_of, held

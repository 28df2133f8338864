"""Divide labeled tiles into folds: whole groups, every class in every fold, even sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from atlas_wsi.errors import DatasetError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from atlas_wsi.training.tiles import Labeled

_DRAWS = 200


def make_folds(tiles: Labeled, *, n: int, seed: int) -> NDArray[np.int64]:
    """Divide tiles into folds by whole groups, so that every fold has tiles of every class.

    Large groups are dealt first, each to the fold that lacks its classes or has the fewest of
    their tiles. Groups of one class always find such folds if each class has `n` groups; for
    groups of several classes (slides, patients) other orders are tried.

    Returns: `(N,)` the fold of each tile, from 0.
    """
    if n < 2:
        raise ValueError(f"{n} folds; expected 2 or more")
    names, group = np.unique(np.array(tiles.groups), return_inverse=True)
    counts = np.zeros((len(names), len(tiles.classes)), np.int64)
    np.add.at(counts, (group, tiles.labels), 1)
    n_groups = (counts > 0).sum(axis=0)
    if n_groups.min() < n:
        rare = int(n_groups.argmin())
        raise DatasetError(
            f"The class {tiles.classes[rare]} has {n_groups[rare]} groups, fewer than {n} folds.",
            hint="Ask for fewer folds, or label that class in more groups (slides, patients).",
        )
    rng = np.random.default_rng(seed)
    is_pure = bool(((counts > 0).sum(axis=1) == 1).all())
    for draw in range(1 if is_pure else _DRAWS):
        size = counts.sum(axis=1) * (1 if draw == 0 else rng.uniform(0.3, 1, len(counts)))
        fold_of_group, held = _deal(counts, np.lexsort((rng.random(len(counts)), -size)), n)
        if (held > 0).all():
            return fold_of_group[group]
    raise DatasetError(
        f"No way was found to give each of {n} folds whole groups of every class.",
        hint="Ask for fewer folds, or label every class in more groups (slides, patients).",
    )


def _deal(
    counts: NDArray[np.int64], order: NDArray[np.int64], n: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Deal groups `(groups, classes)` to folds; return each one's fold and `(folds, classes)`."""
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

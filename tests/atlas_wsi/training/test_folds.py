"""Folds and splits by group: laws for any labels and groups."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_wsi.errors import DatasetError
from atlas_wsi.training.data.labeled import LabeledTiles
from atlas_wsi.training.split import make_folds, split, split_two


def tile_set(labels, groups, n_classes):
    return LabeledTiles(
        images=np.zeros((len(labels), 1, 1, 3), np.uint8),
        labels=np.array(labels, np.int64),
        groups=tuple(groups),
        paths=tuple(map(str, range(len(labels)))),
        classes=tuple(f"class {k}" for k in range(n_classes)),
        is_grouped=True,
    )


@st.composite
def pure(draw, least=2):
    """Groups of one class each, as copies of one tile are; `least` groups a class or more."""
    n_classes = draw(st.integers(2, 4))
    labels, groups = [], []
    for k in range(n_classes):
        for g in range(draw(st.integers(least, least + 8))):
            size = draw(st.integers(1, 9))
            labels += [k] * size
            groups += [f"{k}-{g}"] * size
    order = draw(st.permutations(range(len(labels))))
    return tile_set([labels[i] for i in order], [groups[i] for i in order], n_classes)


@st.composite
def mixed(draw):
    """Tiles of patients who have one or several classes."""
    n_classes = draw(st.integers(2, 3))
    rows = draw(st.lists(st.tuples(st.integers(0, n_classes - 1), st.integers(0, 11)), min_size=8))
    rows += [(k, 100 + k) for k in range(n_classes)]
    return tile_set([k for k, _ in rows], [f"patient {g}" for _, g in rows], n_classes)


def sides(tiles, fold):
    for k in range(int(fold.max()) + 1):
        yield np.flatnonzero(fold != k), np.flatnonzero(fold == k)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(2, 5), st.integers(0, 3))
def test_groups_of_one_class_give_folds_without_copies_and_with_every_class(data, n, seed):
    tiles = data.draw(pure(least=n))
    fold = make_folds(tiles, n=n, seed=seed)
    assert set(fold) == set(range(n))
    assert len(fold) == len(tiles)
    for known, asked in sides(tiles, fold):
        assert not {tiles.groups[i] for i in known} & {tiles.groups[i] for i in asked}
        assert set(tiles.labels[known]) == set(tiles.labels[asked]) == set(tiles.labels)
    assert np.array_equal(fold, make_folds(tiles, n=n, seed=seed))


@settings(max_examples=60, deadline=None)
@given(mixed(), st.integers(2, 4))
def test_patients_of_several_classes_stay_whole_or_the_folds_are_refused(tiles, n):
    try:
        fold = make_folds(tiles, n=n, seed=0)
    except DatasetError:
        return
    for known, asked in sides(tiles, fold):
        assert not {tiles.groups[i] for i in known} & {tiles.groups[i] for i in asked}
        assert set(tiles.labels[known]) == set(tiles.labels[asked]) == set(tiles.labels)


def test_patients_with_every_class_are_never_refused():
    labels = np.tile([0, 1, 2], 7)
    tiles = tile_set(labels, [f"patient {i // 3}" for i in range(len(labels))], 3)
    assert np.bincount(make_folds(tiles, n=5, seed=0)).tolist() == [6, 6, 3, 3, 3]


def test_folds_are_as_even_as_scikit_learns_where_groups_differ_in_size():
    from sklearn.model_selection import StratifiedGroupKFold

    rng = np.random.default_rng(3)
    sizes = rng.integers(1, 30, 90)
    labels = np.repeat(np.arange(90) % 3, sizes)
    groups = [f"g{i}" for i in np.repeat(np.arange(90), sizes)]
    tiles = tile_set(labels, groups, 3)

    def unevenness(parts):
        counts = np.array([np.bincount(labels[part], minlength=3) for part in parts])
        return counts.std(axis=0).sum()

    theirs = [test for _, test in StratifiedGroupKFold(5).split(labels, labels, groups)]
    ours = [asked for _, asked in sides(tiles, make_folds(tiles, n=5, seed=0))]
    assert unevenness(ours) <= unevenness(theirs)


def test_a_class_with_fewer_groups_than_folds_is_named():
    tiles = tile_set(
        [0] * 6 + [1] * 6, [f"g{i}" for i in range(6)] + ["a", "a", "b", "b", "c", "c"], 2
    )
    with pytest.raises(DatasetError, match="class 1 has 3 groups, fewer than 4 folds"):
        make_folds(tiles, n=4, seed=0)


@settings(max_examples=60, deadline=None)
@given(pure(least=3), st.floats(0.2, 0.5), st.integers(0, 3))
def test_a_split_of_three_holds_every_tile_once_and_no_group_twice(tiles, share, seed):
    try:
        divided = split(tiles, test=share, validation=share, seed=seed)
    except DatasetError:
        return  # too few groups for a share of a share
    parts = (divided.train, divided.validation, divided.test)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(tiles)))
    groups = [{tiles.groups[i] for i in part} for part in parts]
    assert sum(map(len, groups)) == len(set.union(*groups))
    assert all(set(tiles.labels[part]) == set(tiles.labels) for part in parts)


@settings(max_examples=60, deadline=None)
@given(mixed(), st.floats(0.2, 0.5))
def test_a_split_leaves_every_class_on_both_sides_or_is_refused(tiles, share):
    try:
        known, asked = split_two(tiles, fraction=share, seed=0)
    except DatasetError:
        return
    assert np.array_equal(np.sort(np.concatenate([known, asked])), np.arange(len(tiles)))
    assert not {tiles.groups[i] for i in known} & {tiles.groups[i] for i in asked}
    assert set(tiles.labels[known]) == set(tiles.labels[asked]) == set(tiles.labels)

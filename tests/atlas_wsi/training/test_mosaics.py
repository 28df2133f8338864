"""Mosaics: what the label says is what the picture shows."""

from __future__ import annotations

import numpy as np
import pytest

from atlas_wsi.training.data.augment import augment
from atlas_wsi.training.data.labeled import LabeledTiles
from atlas_wsi.training.data.mosaics import Batches, make_mosaic
from atlas_wsi.training.recipe import Recipe

COLORS = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]], np.uint8)

MIX = {"mosaics": 2 / 3, "color_jitter": 1.0}


CELL_PX = 64


def flat_tiles(side: int = 96) -> LabeledTiles:
    """One color a class, far apart even after changes of light and stain."""
    labels = np.arange(9) % 3
    return LabeledTiles(
        images=np.ascontiguousarray(
            np.broadcast_to(COLORS[labels][:, None, None], (9, side, side, 3))
        ),
        labels=labels.astype(np.int64),
        groups=tuple(map(str, range(9))),
        paths=tuple(map(str, range(9))),
        classes=("red", "green", "blue"),
        is_grouped=False,
    )


@pytest.mark.parametrize("seed", range(6))
def test_a_cells_label_is_the_area_of_each_class_in_it(seed):
    mosaic = make_mosaic(flat_tiles(), (384, 512), np.random.default_rng(seed), stain=False)
    brightest = mosaic.image.argmax(axis=2)
    blocks = brightest.reshape(384 // CELL_PX, CELL_PX, 512 // CELL_PX, CELL_PX)
    for label in range(3):
        seen = (blocks == label).mean(axis=(1, 3))
        assert np.abs(seen - mosaic.shares[label]).max() < 0.02


@pytest.mark.parametrize("seed", range(6))
def test_shares_of_a_cell_sum_to_what_is_not_glass(seed):
    mosaic = make_mosaic(flat_tiles(), (448, 384), np.random.default_rng(seed), stain=True)
    is_glass = (mosaic.image.min(axis=2) > 200).reshape(7, CELL_PX, 6, CELL_PX)
    assert np.abs(1 - is_glass.mean(axis=(1, 3)) - mosaic.shares.sum(axis=0)).max() < 0.02


def test_borders_fall_inside_cells_and_inside_tiles():
    rng = np.random.default_rng(0)
    mixed = [
        ((m.shares > 0).sum(axis=0) > 1).mean()
        for m in (make_mosaic(flat_tiles(), (768, 768), rng, stain=False) for _ in range(8))
    ]
    assert np.mean(mixed) > 0.05


def test_a_step_shows_the_same_pictures_for_the_same_seed():
    recipe = Recipe(seed=5, megapixels=0.2, **MIX)
    for step in range(4):
        both = (Batches(tiles=flat_tiles(), recipe=recipe, stain=True) for _ in range(2))
        first, again = (batches[step] for batches in both)
        assert first.images.equal(again.images)
        assert first.shares.equal(again.shares)
    other = Batches(tiles=flat_tiles(), recipe=Recipe(seed=6, megapixels=0.2, **MIX), stain=True)[3]
    assert not first.images.equal(other.images)


def test_one_two_and_three_scales_are_all_trained():
    batches = Batches(tiles=flat_tiles(), recipe=Recipe(megapixels=0.2, **MIX), stain=False)
    sizes = {max(batches[step].images.shape[1:3]) for step in range(32)}
    assert min(sizes) <= 256
    assert any(256 < size <= 1024 for size in sizes)
    assert max(sizes) > 1024


@pytest.mark.parametrize("stain", [True, False])
@pytest.mark.parametrize("shape", [(64, 64), (224, 224), (100, 72)])
def test_augmented_tiles_keep_shape_and_range(stain, shape):
    rng = np.random.default_rng(0)
    tile = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    for _ in range(20):
        changed = augment(tile, rng, stain=stain)
        assert changed.shape == tile.shape
        assert changed.dtype == np.uint8


def test_white_glass_stays_bright_when_stains_vary():
    rng = np.random.default_rng(0)
    white = np.full((64, 64, 3), 250, np.uint8)
    assert min(augment(white, rng, stain=True).mean() for _ in range(40)) > 180


@pytest.mark.slow
def test_windows_that_are_left_out_carry_no_label_and_others_keep_theirs():
    left_out = 0
    for step in range(1, 40):
        batch = Batches(tiles=flat_tiles(), recipe=Recipe(megapixels=0.2, **MIX), stain=True)[step]
        if batch.active is None:
            continue
        assert batch.active.flatten(1).any(dim=1).all()
        for image, active in enumerate(batch.active):
            for row, col in (~active).nonzero().tolist():
                cells = batch.shares[image, :, 4 * row : 4 * row + 4, 4 * col : 4 * col + 4]
                assert not cells.any()
                left_out += 1
        if batch.active.all():
            assert batch.shares.flatten(1).any(dim=1).all()
    assert left_out > 20

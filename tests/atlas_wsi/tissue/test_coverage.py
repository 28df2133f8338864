from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from atlas_wsi.grid import Grid
from atlas_wsi.tissue.mask import TissueMask
from atlas_wsi.tissue.windows import plan_windows

sides = st.integers(1, 12)
masks = st.tuples(sides, sides).flatmap(lambda shape: arrays(np.bool_, shape))
steps = st.tuples(st.floats(0.3, 40), st.floats(0.3, 40))


def mask_of(values: np.ndarray, step: tuple[float, float] = (8.0, 8.0)) -> TissueMask:
    return TissueMask(
        mask=values, grid=Grid(shape=values.shape, step_px=step), method="brightfield"
    )


def brute_force(mask: TissueMask, grid: Grid, samples: int = 40) -> np.ndarray:
    """Share of tissue among many points in each cell."""
    points = (np.arange(samples) + 0.5) / samples
    index = []
    for axis in (0, 1):
        at = grid.origin_px[axis] + grid.step_px[axis] * (
            np.arange(grid.shape[axis])[:, None] + points
        )
        cell = (at.ravel() - mask.grid.origin_px[axis]) / mask.grid.step_px[axis]
        index.append(np.floor(cell).astype(int))
    outside = [(i < 0) | (i >= n) for i, n in zip(index, mask.mask.shape, strict=True)]
    index = [i.clip(0, n - 1) for i, n in zip(index, mask.mask.shape, strict=True)]
    hit = mask.mask[np.ix_(*index)] & ~outside[0][:, None] & ~outside[1][None]
    return hit.reshape(grid.shape[0], samples, grid.shape[1], samples).mean((1, 3))


@given(masks, steps)
def test_coverage_of_the_masks_own_grid_is_the_mask(values: np.ndarray, step) -> None:
    mask = mask_of(values, step)
    np.testing.assert_allclose(mask.coverage(mask.grid), values, atol=1e-5)


@given(masks, steps)
def test_tissue_area_is_kept_on_any_grid_that_covers_the_mask(values: np.ndarray, step) -> None:
    mask = mask_of(values)
    extent = (values.shape[0] * 8, values.shape[1] * 8)
    grid = Grid.over(extent, step)
    area = mask.coverage(grid).sum(dtype=float) * step[0] * step[1]
    assert area == pytest.approx(values.sum() * 64, rel=1e-4, abs=1e-2)


@given(masks, steps, st.tuples(st.floats(-50, 50), st.floats(-50, 50)))
def test_coverage_is_the_share_of_points_that_are_tissue(values: np.ndarray, step, origin) -> None:
    mask = mask_of(values)
    grid = Grid(shape=(3, 4), step_px=step, origin_px=origin)
    # 40 points a side miss an edge by at most 1/40 of the cell; a small cell has one edge or none.
    edges = 2 + max(step) / 8
    np.testing.assert_allclose(
        mask.coverage(grid), brute_force(mask, grid), atol=edges * 2 / 40 + 1e-6
    )


def test_windows_cover_the_whole_slide_and_start_at_its_corner() -> None:
    plan = plan_windows((2967, 2220), (0.499, 0.499), None, mpp=0.5)
    assert plan.image_shape == (2962, 2216)
    assert plan.grid.shape == (12, 9)
    assert plan.grid.origin_px == (0.0, 0.0)
    assert plan.grid.step_px == pytest.approx((256 * 0.5 / 0.499,) * 2)
    assert plan.active.all()


@given(
    st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    st.tuples(st.floats(0.1, 2), st.floats(0.1, 2)),
    st.floats(0.2, 4),
    st.sampled_from([64, 224, 256]),
)
def test_as_many_windows_as_the_working_image_needs(shape, slide_mpp, mpp, window_px) -> None:
    plan = plan_windows(shape, slide_mpp, None, mpp=mpp, window_px=window_px)
    for n_windows, n_px, size, own in zip(
        plan.grid.shape, plan.image_shape, shape, slide_mpp, strict=True
    ):
        assert (n_windows - 1) * window_px < n_px <= n_windows * window_px
        assert n_px - 1 <= size * own / mpp <= n_px + 1e-3 or n_px == 1


def test_a_window_is_active_if_it_holds_the_share_of_tissue_asked_for() -> None:
    values = np.zeros((32, 32), bool)
    values[:4, :4] = True  # a sixteenth of the first window of 16 x 16 mask cells
    mask = mask_of(values)
    expected = np.array([[True, False], [False, False]])
    np.testing.assert_array_equal(
        plan_windows((256, 256), (1, 1), mask, mpp=1, window_px=128, min_tissue=0.06).active,
        expected,
    )
    assert (
        plan_windows((256, 256), (1, 1), mask, mpp=1, window_px=128, min_tissue=0.07).n_active == 0
    )
    np.testing.assert_array_equal(
        plan_windows((256, 256), (1, 1), mask, mpp=1, window_px=128, min_tissue=0).active, expected
    )


def test_a_sliver_of_a_window_at_the_border_counts_by_what_lies_on_the_slide() -> None:
    mask = mask_of(np.ones((17, 16), bool))
    plan = plan_windows((130, 128), (1, 1), mask, mpp=1, window_px=128, min_tissue=0.9)
    np.testing.assert_array_equal(plan.active, [[True], [True]])


def test_without_tissue_no_window_is_active() -> None:
    mask = mask_of(np.zeros((10, 10), bool))
    assert plan_windows((80, 80), (1, 1), mask, mpp=1, min_tissue=0).n_active == 0


def test_a_mask_that_does_not_fit_its_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="expected bool"):
        TissueMask(
            mask=np.ones((2, 3), bool), grid=Grid(shape=(3, 2), step_px=(1, 1)), method="valid"
        )


@pytest.mark.parametrize("wrong", [{"mpp": 0}, {"mpp": 1, "min_tissue": 2}])
def test_sizes_that_make_no_sense_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match=r"positive|between"):
        plan_windows((10, 10), (1, 1), None, **wrong)

"""Laws of reading regions, whatever the file."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_wsi.errors import MissingResolutionError
from atlas_wsi.grid import Box
from atlas_wsi.slides.open import open_slide
from atlas_wsi.slides.slide import slide_name


@pytest.fixture(scope="module")
def shared(svs):
    """The same slide for all examples of a law."""
    with open_slide(svs) as opened:
        yield opened


def write_picture(path, pixels, mpp=0.5):
    """Write a TIFF file whose tags say how large a pixel is."""
    tifffile.imwrite(
        path,
        pixels,
        tile=(64, 64),
        photometric="rgb" if pixels.ndim == 3 else "minisblack",
        compression="zlib",
        resolution=(1e4 / mpp, 1e4 / mpp),
        resolutionunit="CENTIMETER",
    )
    return open_slide(path)


# Where pixels come from ------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    mpp=st.floats(0.3, 20.0),
    y=st.floats(-400, 1700),
    x=st.floats(-400, 2300),
    heights=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    widths=st.lists(st.integers(1, 60), min_size=1, max_size=4),
)
def test_an_area_read_whole_equals_its_parts_joined(shared, mpp, y, x, heights, widths):
    step = mpp / shared.mpp[0]
    whole = shared.read_region(y, x, sum(heights), sum(widths), mpp=mpp)
    rows, cols = np.cumsum([0, *heights]), np.cumsum([0, *widths])
    for (top, bottom), (left, right) in ((r, c) for r in pairwise(rows) for c in pairwise(cols)):
        part = shared.read_region(
            y + top * step, x + left * step, bottom - top, right - left, mpp=mpp
        )
        np.testing.assert_array_equal(part, whole[top:bottom, left:right])


def test_at_level_0_pixels_are_the_stored_ones(shared):
    whole = shared.read_level(0, Box(row=0, col=0, rows=1500, cols=2100))
    part = shared.read_region(700, 901, 300, 411)
    np.testing.assert_array_equal(part, whole[700:1000, 901:1312])


def test_at_a_levels_resolution_pixels_are_the_stored_ones(shared):
    stored = shared.read_level(1, Box(row=10, col=20, rows=100, cols=150))
    read = shared.read_region(40, 80, 100, 150, mpp=4 * shared.mpp[0])
    np.testing.assert_array_equal(read, stored)


def test_outside_the_slide_is_background(shared):
    np.testing.assert_array_equal(shared.read_region(-500, -500, 100, 100), 255)
    np.testing.assert_array_equal(shared.read_region(9000, 9000, 50, 70, mpp=4), 255)
    corner = shared.read_region(1400, 2000, 200, 200)
    np.testing.assert_array_equal(corner[100:], 255)
    np.testing.assert_array_equal(corner[:, 100:], 255)
    np.testing.assert_array_equal(corner[:100, :100], shared.read_region(1400, 2000, 100, 100))


@pytest.fixture(scope="module")
def even(tmp_path_factory):
    path = tmp_path_factory.mktemp("even") / "even.tif"
    with write_picture(path, np.full((640, 640, 3), (90, 140, 200), np.uint8)) as slide:
        yield slide


@settings(max_examples=40)
@given(mpp=st.floats(0.2, 9.0), y=st.floats(40, 200), x=st.floats(40, 200))
def test_an_even_slide_stays_even_at_any_resolution(even, mpp, y, x):
    region = even.read_region(y, x, 10, 20, mpp=mpp)
    np.testing.assert_array_equal(region, np.broadcast_to([90, 140, 200], region.shape))


@pytest.fixture(scope="module")
def ramp(tmp_path_factory):
    path = tmp_path_factory.mktemp("ramp") / "ramp.tif"
    rows, cols = np.mgrid[:800, :800].astype(np.float32)
    with write_picture(path, np.stack([rows, cols, 0 * rows], axis=-1)) as slide:
        yield slide


@settings(max_examples=40)
@given(mpp=st.floats(0.25, 8.0), y=st.floats(60, 300), x=st.floats(60, 300))
def test_a_pixel_shows_the_middle_of_the_ground_it_covers(ramp, mpp, y, x):
    step = mpp / ramp.mpp[0]
    region = ramp.read_region(y, x, 12, 15, mpp=mpp)
    middle_y = y + (np.arange(12) + 0.5) * step - 0.5
    middle_x = x + (np.arange(15) + 0.5) * step - 0.5
    np.testing.assert_allclose(region[..., 0], middle_y[:, None] + np.zeros(15), atol=0.1)
    np.testing.assert_allclose(region[..., 1], middle_x[None, :] + np.zeros((12, 1)), atol=0.1)


def test_reduction_averages_instead_of_skipping(tmp_path):
    checks = np.indices((512, 512)).sum(axis=0) % 2 * np.uint8(200)
    with write_picture(tmp_path / "checks.tif", np.repeat(checks[..., None], 3, 2)) as slide:
        region = slide.read_region(64, 64, 60, 60, mpp=2.4)
        assert np.abs(region.astype(int) - 100).max() <= 6


def test_rows_and_columns_may_have_different_resolutions(tmp_path, pixels):
    path = tmp_path / "flat.tif"
    write_picture(path, pixels).close()
    with open_slide(path, mpp=(1.0, 0.5)) as slide:
        region = slide.read_region(0, 0, 300, 200, mpp=1.0)
        tall = slide.read_region(0, 0, 300, 400, mpp=(1.0, 0.5))
        np.testing.assert_array_equal(tall, pixels[:300, :400])
        halved = tall.reshape(300, 200, 2, 3).mean(axis=2)
        assert np.abs(region[:, 2:-2] - halved[:, 2:-2]).mean() < 20


def test_a_region_without_pixels_is_empty(shared):
    assert shared.read_region(0, 0, 0, 7).shape == (0, 7, 3)
    assert shared.read_region(0, 0, 7, 0, mpp=3.3).shape == (7, 0, 3)
    assert shared.read_valid(0, 0, 0, 7, mpp=3.3).shape == (0, 7)


@pytest.mark.parametrize(
    "arguments", [(0, 0, -1, 5), (float("nan"), 0, 5, 5), (0, float("inf"), 5, 5)]
)
def test_an_impossible_region_is_a_mistake_of_the_caller(shared, arguments):
    with pytest.raises(ValueError, match="No region"):
        shared.read_region(*arguments)


def test_what_is_read_may_be_changed(shared):
    for y, side in ((256, 256), (100, 300)):
        before = shared.read_region(y, 512, side, side)
        kept = before.copy()
        before[...] = 0
        np.testing.assert_array_equal(shared.read_region(y, 512, side, side), kept)


# The pyramid -----------------------------------------------------------------------------------


def test_levels_go_down_to_1024_pixels_even_if_the_file_has_one(tmp_path, pixels):
    wide = np.tile(pixels, (3, 4, 1))
    with write_picture(tmp_path / "wide.tif", wide) as slide:
        assert slide.level_shapes == ((2100, 3600), (1050, 1800), (525, 900))
        assert slide.downsamples == ((1, 1), (2, 2), (4, 4))
        level = slide.levels[1].compute()
        mean = wide.reshape(1050, 2, 1800, 2, 3).mean(axis=(1, 3))
        assert np.abs(level - mean).max() <= 0.5


def test_missing_pixels_do_not_bleed_into_coarse_levels(tmp_path):
    stored = np.full((1500, 1300, 4), (120, 130, 140, 255), np.uint8)
    hole = (slice(301, 902), slice(77, 640))
    stored[hole] = 0
    path = tmp_path / "hole.tif"
    tifffile.imwrite(path, stored, photometric="rgb", extrasamples=["unassalpha"], tile=(256, 256))
    with open_slide(path, mpp=1.0) as slide:
        for read in (slide.levels[1].compute(), slide.read_region(0, 0, 300, 300, mpp=3.7)):
            colors = {tuple(int(v) for v in c) for c in np.unique(read.reshape(-1, 3), axis=0)}
            assert colors == {(120, 130, 140), (255, 255, 255)}
        valid = slide.read_valid(0, 0, 750, 650, mpp=2.0)
        expected = 1 - 601 * 563 / (1500 * 1300)
        assert valid.mean() == pytest.approx(expected, abs=0.003)
        coarse = slide.read_valid(0, 0, 405, 351, mpp=3.7)
        assert coarse.mean() == pytest.approx(expected, abs=0.01)


def test_levels_are_dask_arrays_of_the_same_pixels(shared):
    assert [level.shape for level in shared.levels] == [(1500, 2100, 3), (375, 525, 3)]
    part = shared.levels[0][200:900, 100:1300]
    np.testing.assert_array_equal(part.compute(), shared.read_region(200, 100, 700, 1200))


def test_a_graph_of_gigapixels_is_small(shared):
    assert len(pickle.dumps(shared.levels[0])) < 20_000


@pytest.mark.slow
def test_levels_can_be_computed_in_other_processes(shared):
    part = shared.levels[0][:600, :600]
    np.testing.assert_array_equal(
        part.compute(scheduler="processes", num_workers=2), shared.read_region(0, 0, 600, 600)
    )


def test_a_thumbnail_shows_the_whole_slide(shared):
    small = shared.thumbnail(300)
    assert small.shape == (214, 300, 3)
    level = shared.levels[1].compute().astype(float)
    assert np.abs(small.mean(axis=(0, 1)) - level.mean(axis=(0, 1))).max() < 2
    assert shared.thumbnail(5000).shape == (1500, 2100, 3)


# Resolution ------------------------------------------------------------------------------------


def test_the_callers_resolution_wins(svs):
    with open_slide(svs, mpp=1.25) as slide:
        assert slide.mpp == (1.25, 1.25)
        assert slide.mpp_source == "argument"
    with open_slide(svs) as slide:
        assert slide.mpp == (0.5, 0.5)
        assert slide.mpp_source == "openslide.mpp-x"


@pytest.mark.parametrize("mpp", [0, -1.0, float("nan"), float("inf"), (0.5, 0)])
def test_a_resolution_must_be_positive(svs, mpp):
    with pytest.raises(ValueError, match="mpp must be"):
        open_slide(svs, mpp=mpp)


def test_without_a_resolution_the_error_names_the_flag(tmp_path, pixels):
    path = tmp_path / "plain.tif"
    tifffile.imwrite(path, pixels)
    with open_slide(path) as slide:
        assert slide.mpp is None
        with pytest.raises(MissingResolutionError, match=r"plain .* --mpp"):
            slide.read_region(0, 0, 10, 10, mpp=1.0)
        assert slide.read_region(0, 0, 10, 10).shape == (10, 10, 3)


# Threads, processes, life ----------------------------------------------------------------------


def test_threads_read_what_one_thread_reads(svs, shared):
    places = [(y, x, mpp) for y in (0, 133, 700) for x in (50, 900) for mpp in (None, 0.7, 3.0)]
    expected = [shared.read_region(y, x, 200, 260, mpp=mpp) for y, x, mpp in places]
    with open_slide(svs) as slide, ThreadPoolExecutor(8) as pool:
        read = pool.map(lambda at: slide.read_region(at[0], at[1], 200, 260, mpp=at[2]), places)
        for one, other in zip(read, expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_slide_pickles_by_its_path(svs):
    with open_slide(svs, mpp=0.3, strict=True) as slide:
        stored = pickle.dumps(slide)
        assert len(stored) < 1000
        with pickle.loads(stored) as again:
            assert (again.path, again.mpp, again.strict) == (slide.path, (0.3, 0.3), True)
            np.testing.assert_array_equal(
                again.read_region(300, 300, 90, 90), slide.read_region(300, 300, 90, 90)
            )


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/a/CMU-1.svs", "CMU-1"),
        ("/a/TCGA-AA-01Z-00-DX1.8F2C.svs", "TCGA-AA-01Z-00-DX1.8F2C"),
        ("/a/slide.ome.tiff", "slide"),
        ("/a/image.ome.zarr", "image"),
        ("/a/image.ome.zarr.zip", "image"),
        ("https://host/x/image.zarr/?token=1", "image"),
        ("/a/1.2.840.10008", "1.2.840.10008"),
        ("/a/😐.svs", "😐"),
        ("/a/.svs", "slide"),
    ],
)
def test_the_name_is_that_of_the_file_without_its_suffix(path, name):
    assert slide_name(path) == name

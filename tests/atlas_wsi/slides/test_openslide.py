"""Slides behind OpenSlide: what it tells, and what happens to damaged ones."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openslide
import pytest
import tifffile

from atlas_wsi.errors import MissingResolutionError, UnreadableSlideError
from atlas_wsi.grid import Box
from atlas_wsi.slides.formats.openslide import open_openslide
from atlas_wsi.slides.open import open_slide
from atlas_wsi.slides.slide import Slide


def damage(svs, path, tiles, *, page=0):
    """Copy a slide and write zeros over the bytes of some tiles."""
    shutil.copy(svs, path)
    with tifffile.TiffFile(path) as tif:
        where = [(tif.pages[page].dataoffsets[t], tif.pages[page].databytecounts[t]) for t in tiles]
    with path.open("r+b") as file:
        for offset, n_bytes in where:
            file.seek(offset)
            file.write(b"\0" * n_bytes)
    return path


@pytest.fixture
def damaged(svs, tmp_path):
    """A slide of 6 x 9 tiles whose tiles (0, 2) and (3, 4) cannot be decoded."""
    return damage(svs, tmp_path / "damaged.svs", [2, 3 * 9 + 4])


def test_the_slide_tells_what_openslide_knows(slide, svs):
    with openslide.OpenSlide(svs) as theirs:
        assert slide.shape == (1500, 2100)
        assert slide.vendor == theirs.properties["openslide.vendor"] == "aperio"
        assert slide.magnification == 20
        assert slide.bounds == Box(row=0, col=0, rows=1500, cols=2100)
        assert slide.background == (255, 255, 255)
        assert set(slide.associated) == set(theirs.associated_images)
        assert slide.meta.properties["aperio.MPP"] == "0.5"
    assert not slide.is_georeferenced
    assert slide.meta.warnings == ()


def test_associated_images_are_rgb(slide, svs):
    with openslide.OpenSlide(svs) as theirs:
        for name in slide.associated:
            expected = np.asarray(theirs.associated_images[name].convert("RGB"))
            np.testing.assert_array_equal(slide.read_associated(name), expected)
    with pytest.raises(ValueError, match="no image 'barcode'"):
        slide.read_associated("barcode")


def test_any_region_equals_openslides(slide, svs):
    with openslide.OpenSlide(svs) as theirs:
        for y, x, rows, cols in ((0, 0, 256, 256), (777, 1203, 300, 500), (1400, 2000, 100, 100)):
            expected = np.asarray(theirs.read_region((x, y), 0, (cols, rows)).convert("RGB"))
            np.testing.assert_array_equal(slide.read_region(y, x, rows, cols), expected)


def test_unreadable_tiles_are_counted_and_placed(damaged, slide):
    with open_slide(damaged) as broken:
        whole = broken.read_region(0, 0, *broken.shape)
        places = [(tile.level, tile.box) for tile in broken.unreadable]
        assert sorted(places, key=str) == [
            (0, Box(row=0, col=512, rows=256, cols=256)),
            (0, Box(row=768, col=1024, rows=256, cols=256)),
        ]
        assert all(tile.reason for tile in broken.unreadable)
        expected = slide.read_region(0, 0, *slide.shape)
        expected[0:256, 512:768] = expected[768:1024, 1024:1280] = 255
        np.testing.assert_array_equal(whole, expected)
        valid = broken.read_valid(0, 0, *broken.shape)
        assert valid.sum() == valid.size - 2 * 256 * 256


def test_unreadable_tiles_are_no_observation_at_other_resolutions(damaged):
    with open_slide(damaged) as broken:
        broken.read_region(0, 0, *broken.shape)
        valid = broken.read_valid(0, 0, 375, 525, mpp=2.0)
        assert not valid[1:63, 129:191].any()
        assert valid.sum() == pytest.approx(valid.size - 2 * 64 * 64, abs=300)


def test_one_bad_tile_does_not_spoil_the_others_in_other_threads(damaged, slide):
    backend = open_openslide(damaged)  # without the fast path: OpenSlide's handle breaks for good
    boxes = [Box(row=r, col=c, rows=256, cols=256) for r in range(0, 1280, 256) for c in (0, 512)]

    def read(box):
        try:
            return backend.read_block(0, box)
        except UnreadableSlideError:
            return None

    with ThreadPoolExecutor(4) as pool:
        blocks = list(pool.map(read, boxes * 3))
    for box, block in zip(boxes * 3, blocks, strict=True):
        if box == Box(row=0, col=512, rows=256, cols=256):
            assert block is None
        else:
            np.testing.assert_array_equal(block, slide.read_level(0, box))
    backend.close()


def test_strict_refuses_an_unreadable_tile(damaged):
    with open_slide(damaged, strict=True) as broken:
        broken.read_region(0, 0, 200, 200)
        with pytest.raises(UnreadableSlideError, match=r"damaged\.svs: level 0, rows 0 to 256"):
            broken.read_region(0, 0, 300, 600)


def test_an_unreadable_tile_is_seen_from_coarse_levels_made_of_it(svs, tmp_path):
    path = damage(svs, tmp_path / "coarse.svs", range(6), page=2)
    with open_slide(path) as broken:
        broken.read_region(0, 0, 375, 525, mpp=2.0)
        assert {tile.level for tile in broken.unreadable} == {1}
        assert len(broken.unreadable) == 6


def test_the_fast_path_and_openslide_tell_the_same(slide, svs):
    with Slide(open_openslide(svs), str(svs)) as slow:
        assert slow.meta == slide.meta


def test_a_level_with_missing_tiles_is_left_to_openslide(svs, tmp_path):
    path = tmp_path / "sparse.svs"
    shutil.copy(svs, path)
    with tifffile.TiffFile(path, mode="r+b") as tif:
        tag = tif.pages[0].tags["TileByteCounts"]
        tag.overwrite([0, *tag.value[1:]])
    with open_slide(path) as slide, openslide.OpenSlide(path) as theirs:
        expected = theirs.read_region((0, 0), 0, (512, 256)).convert("RGB")
        read = slide.read_region(0, 0, 256, 512)
        np.testing.assert_array_equal(read[:, 256:], np.asarray(expected)[:, 256:])
        assert slide.unreadable == []


@pytest.mark.parametrize(("photometric", "subsampling"), [("rgb", (1, 1)), ("ycbcr", (2, 1))])
def test_other_color_forms_equal_openslides(tmp_path, pixels, photometric, subsampling):
    path = tmp_path / "color.svs"
    tifffile.imwrite(
        path,
        pixels,
        tile=(240, 240),
        photometric=photometric,
        compression="jpeg",
        compressionargs={"level": 80},
        subsampling=subsampling if photometric == "ycbcr" else None,
        description="Aperio Image Library v11.2.1\r\n900x700 (240x240)|AppMag = 40|MPP = 0.25",
        metadata=None,
    )
    with open_slide(path) as slide, openslide.OpenSlide(path) as theirs:
        assert slide.vendor == "aperio"
        expected = np.asarray(theirs.read_region((0, 0), 0, (900, 700)).convert("RGB"))
        np.testing.assert_array_equal(slide.read_region(0, 0, 700, 900), expected)


def test_without_mpp_the_objective_power_is_told_but_not_used(tmp_path, pixels):
    path = tmp_path / "power.svs"
    description = "Aperio Image Library v11.2.1\r\n900x700 (240x240)|AppMag = 40"
    tifffile.imwrite(
        path, pixels, tile=(240, 240), compression="jpeg", description=description, metadata=None
    )
    with open_slide(path) as slide:
        assert slide.magnification == 40
        assert slide.mpp is None
        with pytest.raises(MissingResolutionError, match=r"40x, .* about 0\.25 µm.* --mpp"):
            slide.require_mpp()


def test_contradicting_resolutions_are_warned_of(tmp_path, pixels):
    path = tmp_path / "odd.svs"
    description = "Aperio Image Library v11.2.1\r\n900x700 (240x240)|AppMag = 40|MPP = 2.5"
    tifffile.imwrite(
        path, pixels, tile=(240, 240), compression="jpeg", description=description, metadata=None
    )
    with open_slide(path) as slide:
        assert slide.mpp == (2.5, 2.5)
        assert "40x and 2.5" in slide.meta.warnings[0]

"""Pictures of slides at 8 um a pixel, with what makes tissue hard to tell from glass."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import rasterio
import tifffile
from PIL import Image
from scipy.ndimage import gaussian_filter

from atlas_wsi import open_slide
from atlas_wsi.errors import MissingResolutionError
from atlas_wsi.grid import Grid
from atlas_wsi.tissue.mask import tissue_mask

if TYPE_CHECKING:
    from pathlib import Path

    from atlas_wsi.tissue.mask import TissueMask

SHAPE = (220, 300)
HE, PALE, IHC_PALE = (205, 120, 170), (228, 205, 222), (182, 198, 222)
GLASSES = {
    "white": (255, 255, 255),
    "light": (243, 243, 244),
    "gray": (205, 205, 207),
    "bluish": (228, 226, 238),
    "yellowish": (250, 247, 236),
}


def texture(seed: int, sigma: float, amount: float) -> np.ndarray:
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), sigma)
    return (noise / noise.std() * amount)[..., None]


def blob() -> np.ndarray:
    rows, cols = np.ogrid[: SHAPE[0], : SHAPE[1]]
    return ((rows - 110) / 70) ** 2 + ((cols - 170) / 90) ** 2 < 1


def glass_of(color) -> np.ndarray:
    return np.full((*SHAPE, 3), color, float) + texture(1, 0.5, 1.0)


def with_tissue(picture: np.ndarray, stain, where=None) -> np.ndarray:
    where = blob() if where is None else where
    density = -np.log((np.array(stain) + 1.0) / (np.array(picture.max((0, 1))) + 1))
    stained = picture * np.exp(-density * np.clip(1 + texture(2, 1.5, 0.25), 0.5, 1.8))
    return np.where(where[..., None], stained, picture)


def find(tmp_path: Path, picture: np.ndarray, **options) -> TissueMask:
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, picture.clip(0, 255).astype(np.uint8), photometric="rgb", tile=(64, 64))
    with open_slide(path, mpp=8.0) as slide:
        return tissue_mask(slide, **options)


def overlap(found: np.ndarray, expected: np.ndarray) -> float:
    return (found & expected).sum() / (found | expected).sum()


@pytest.mark.parametrize("glass", GLASSES.values(), ids=GLASSES.keys())
@pytest.mark.parametrize("stain", [HE, PALE, IHC_PALE], ids=["he", "pale", "ihc"])
def test_tissue_is_found_on_any_glass(tmp_path: Path, glass, stain) -> None:
    stain = np.minimum(stain, np.array(glass) * np.array(stain) / 243)
    mask = find(tmp_path, with_tissue(glass_of(glass), stain))
    assert mask.method == "brightfield"
    assert overlap(mask.mask, blob()) > 0.9


@pytest.mark.parametrize("glass", GLASSES.values(), ids=GLASSES.keys())
def test_glass_alone_is_no_tissue_even_with_shading_and_dust(tmp_path: Path, glass) -> None:
    shading = 1 - 0.06 * np.linspace(0, 1, SHAPE[1])[:, None]
    picture = glass_of(glass) * shading
    picture[50:53, 60:63] = 120
    assert find(tmp_path, picture).fraction == 0


@pytest.mark.parametrize("stain", [HE, (150, 90, 150), (70, 30, 75)], ids=["he", "blue", "dense"])
def test_a_picture_without_glass_is_all_tissue(tmp_path: Path, stain) -> None:
    picture = with_tissue(glass_of((243,) * 3), stain, np.ones(SHAPE, bool))
    assert find(tmp_path, picture).fraction > 0.99


INKS = {
    "green": (40, 155, 135),
    "blue": (30, 70, 200),
    "red": (205, 30, 45),
    "black": (25, 24, 28),
}


@pytest.mark.parametrize("ink", INKS.values(), ids=INKS.keys())
def test_pen_marks_are_no_tissue_and_do_not_hide_it(tmp_path: Path, ink) -> None:
    stroke = np.zeros(SHAPE)
    stroke[:, 20:50] = 1
    stroke = gaussian_filter(stroke, 1.5)[..., None]
    picture = with_tissue(glass_of(GLASSES["light"]), HE) * (1 - stroke) + np.array(ink) * stroke
    mask = find(tmp_path, picture).mask
    assert mask[:, 22:48].mean() < 0.02
    assert overlap(mask[:, 70:], blob()[:, 70:]) > 0.9


def test_black_borders_are_no_tissue(tmp_path: Path) -> None:
    picture = with_tissue(glass_of(GLASSES["light"]), HE)
    picture[:30] = picture[:, 280:] = 0
    expected = blob()
    expected[:30] = False
    assert overlap(find(tmp_path, picture).mask, expected) > 0.9


def test_white_padding_does_not_turn_gray_glass_into_tissue(tmp_path: Path) -> None:
    picture = with_tissue(glass_of((238, 234, 237)), HE)
    picture[:, :70] = 255
    picture[:25] = 255
    assert overlap(find(tmp_path, picture).mask, blob()) > 0.9


def test_small_black_nuclei_are_no_ink(tmp_path: Path) -> None:
    picture = with_tissue(glass_of(GLASSES["light"]), IHC_PALE)
    dots = np.random.default_rng(3).random(SHAPE) < 0.05
    picture[dots & blob()] = (35, 28, 22)
    assert overlap(find(tmp_path, picture).mask, blob()) > 0.9


def test_fat_is_tissue_only_if_asked_for(tmp_path: Path) -> None:
    picture = glass_of(GLASSES["light"])
    rows, cols = np.mgrid[: SHAPE[0], : SHAPE[1]]
    wall = ((rows % 14) < 2) | ((cols % 14) < 2)
    where = blob() & wall
    picture = with_tissue(picture, HE, where)
    assert find(tmp_path, picture).mask[blob()].mean() < 0.6
    assert find(tmp_path, picture, keep_fat=True).mask[blob()].mean() > 0.88  # cells cut open stay
    assert find(tmp_path, picture, keep_fat=True).mask[~blob()].mean() < 0.02


@pytest.mark.parametrize(
    ("dtype", "unit", "offset"), [(np.uint8, 1, 0), (np.uint16, 200, 0), (np.uint16, 200, 20)]
)
def test_fluorescence_is_brighter_than_its_background(tmp_path: Path, dtype, unit, offset) -> None:
    lit = np.random.default_rng(0).poisson(3, SHAPE).astype(float) + offset
    dots = gaussian_filter((np.random.default_rng(1).random(SHAPE) < 0.2).astype(float), 0.7)
    lit += np.where(blob(), 20 + 150 * dots, 0)
    path = tmp_path / "dapi.ome.tif"
    tifffile.imwrite(
        path, (lit * unit).astype(dtype)[None], metadata={"axes": "CYX"}, tile=(64, 64)
    )
    with open_slide(path, mpp=8.0) as slide:
        mask = tissue_mask(slide)
    assert mask.method == "fluorescence"
    assert overlap(mask.mask, blob()) > 0.9


def test_a_dark_empty_slide_has_no_tissue(tmp_path: Path) -> None:
    dark = np.random.default_rng(0).poisson(3, (*SHAPE, 3)).astype(float)
    assert find(tmp_path, dark).fraction == 0


def test_a_scene_is_observed_where_it_is_not_nodata(tmp_path: Path) -> None:
    observed = blob()
    bands = np.where(observed, 900, 0).astype(np.uint16)[None].repeat(4, axis=0)
    with rasterio.open(
        tmp_path / "scene.tif",
        "w",
        driver="GTiff",
        count=4,
        height=SHAPE[0],
        width=SHAPE[1],
        dtype="uint16",
        nodata=0,
        crs="EPSG:32633",
        transform=rasterio.transform.from_origin(5e5, 5.4e6, 10, 10),
    ) as file:
        file.write(bands)
    with open_slide(tmp_path / "scene.tif") as scene:
        mask = tissue_mask(scene)
    assert mask.method == "valid"
    np.testing.assert_array_equal(mask.mask, observed)


def test_the_mask_lies_on_the_slide(tmp_path: Path) -> None:
    picture = with_tissue(glass_of(GLASSES["light"]), HE).clip(0, 255).astype(np.uint8)
    enlarged = picture.repeat(4, axis=0).repeat(4, axis=1)
    tifffile.imwrite(tmp_path / "big.tif", enlarged, photometric="rgb", tile=(256, 256))
    with open_slide(tmp_path / "big.tif", mpp=2.0) as slide:
        mask = tissue_mask(slide, mpp=8.0)
        coarse = tissue_mask(slide, mpp=24.0)
    assert mask.grid.shape == SHAPE
    assert mask.grid.step_px == (4, 4)
    assert overlap(mask.mask, blob()) > 0.9
    assert coarse.grid.step_px == pytest.approx((12, 12), rel=0.01)
    assert coarse.grid.step_px[0] * coarse.grid.shape[0] == pytest.approx(880)
    assert np.abs(coarse.coverage(mask.grid) - blob()).mean() < 0.08


@pytest.mark.parametrize("size", [(220, 300), (213, 297), (9, 300)])
def test_tissue_reaches_the_border_of_a_slide_of_any_size(tmp_path: Path, size) -> None:
    picture = with_tissue(glass_of((243,) * 3), HE, np.ones(SHAPE, bool))[: size[0], : size[1]]
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, picture.clip(0, 255).astype(np.uint8), photometric="rgb")
    with open_slide(path, mpp=1.7) as slide:
        mask = tissue_mask(slide)
    assert mask.fraction == 1
    np.testing.assert_allclose(mask.coverage(Grid(shape=(1, 1), step_px=size)), 1, atol=1e-6)


def test_a_mask_is_never_finer_than_the_slide(tmp_path: Path) -> None:
    path = tmp_path / "coarse.tif"
    picture = with_tissue(glass_of(GLASSES["light"]), HE)
    tifffile.imwrite(path, picture.clip(0, 255).astype(np.uint8), photometric="rgb")
    with open_slide(path, mpp=32.0) as slide:
        assert tissue_mask(slide).grid.shape == SHAPE


def test_a_slide_without_resolution_needs_one(tmp_path: Path) -> None:
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, np.full((64, 64, 3), 200, np.uint8), photometric="rgb")
    with open_slide(path) as slide, pytest.raises(MissingResolutionError, match="mpp"):
        tissue_mask(slide)


def test_the_picture_of_a_mask_is_white_on_tissue(tmp_path: Path) -> None:
    mask = find(tmp_path, with_tissue(glass_of(GLASSES["light"]), HE))
    with Image.open(mask.write_png(tmp_path / "mask.png")) as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image) == 255, mask.mask)

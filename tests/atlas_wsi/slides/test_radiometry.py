"""What samples mean: by tags, by product, by argument, never by how they are distributed."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio

from atlas_wsi import MissingScaleError, ModelCard, open_slide
from atlas_wsi.slides.radiometry import WHITE_REFLECTANCE
from atlas_wsi.streaming.working_image import open_working_image

WHITE = 10_000 * WHITE_REFLECTANCE


def write_scene(path, bands, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    count, rows, cols = bands.shape
    where = rasterio.transform.from_origin(options.pop("x", 500_000), 5_000_000, 10, 10)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=count,
        height=rows,
        width=cols,
        dtype=bands.dtype.name,
        crs="EPSG:32633",
        transform=where,
        nodata=options.pop("nodata", None),
    ) as scene:
        scene.write(bands)
        for name, value in options.items():
            setattr(scene, name, value)
    return path


def reflectance(seed=0, shape=(3, 96, 128)):
    return np.random.default_rng(seed).uniform(0.0, 0.3, shape)


def shown(path, white=WHITE_REFLECTANCE, **options):
    with open_slide(path, **options) as scene:
        image = open_working_image(scene, mpp=1e7, white=white)
        rows, cols = image.shape
        from atlas_wsi import Box

        return image.read(Box(row=0, col=0, rows=rows, cols=cols))


def test_scale_and_offset_tags_are_reflectance(tmp_path):
    true = reflectance()
    stored = np.round((true + 0.2) / 2.75e-5).astype(np.uint16)
    path = write_scene(tmp_path / "s.tif", stored, scales=[2.75e-5] * 3, offsets=[-0.2] * 3)
    expected = np.moveaxis(true, 0, -1) / WHITE_REFLECTANCE * 255
    np.testing.assert_allclose(shown(path), np.clip(expected, 0, 255), atol=0.6)


def test_a_model_states_which_reflectance_is_white(tmp_path):
    true = reflectance()
    path = write_scene(tmp_path / "s.tif", (true / 1e-4).astype(np.uint16), scales=[1e-4] * 3)
    np.testing.assert_allclose(
        shown(path, white=0.6), np.moveaxis(true, 0, -1) / 0.6 * 255, atol=0.6
    )
    assert ModelCard.model_fields["white_reflectance"].default == WHITE_REFLECTANCE


SAFE = "S2A_MSIL1C_20230604T101031_N0509_R022_T32TNS_20230604T120000.SAFE"
OLD_SAFE = "S2A_MSIL1C_20190604T101031_N0207_R022_T32TNS_20190604T120000.SAFE"


@pytest.mark.parametrize(
    ("name", "scale", "offset"),
    [
        (f"{SAFE}/GRANULE/L1C/IMG_DATA/T32TNS_20230604T101031_B04.tif", 1e-4, -0.1),
        (f"{OLD_SAFE}/GRANULE/L1C/IMG_DATA/T32TNS_20190604T101031_B04.tif", 1e-4, 0.0),
        ("LC08_L2SP_195028_20230604_20230613_02_T1_SR_B4.TIF", 2.75e-5, -0.2),
        ("HLS.S30.T32TNS.2023155T101031.v2.0.B04.tif", 1e-4, 0.0),
    ],
)
def test_the_same_ground_of_known_products_is_the_same_picture(tmp_path, name, scale, offset):
    true = reflectance(shape=(1, 96, 128))
    path = write_scene(tmp_path / name, np.round((true - offset) / scale).astype(np.uint16))
    expected = np.moveaxis(true, 0, -1) / WHITE_REFLECTANCE * 255
    np.testing.assert_allclose(shown(path)[..., :1], np.clip(expected, 0, 255), atol=0.8)


def test_the_baseline_is_read_from_the_metadata_beside_a_band(tmp_path):
    true = reflectance(shape=(1, 96, 128))
    band = tmp_path / "GRANULE" / "IMG_DATA" / "R10m" / "T32TNS_20230604T101031_B04_10m.tif"
    path = write_scene(band, np.round(true * 1e4 + 1000).astype(np.uint16))
    with open_slide(path) as scene, pytest.raises(MissingScaleError, match="--scale"):
        scene.require_samples()
    (tmp_path / "MTD_MSIL2A.xml").write_text(
        "<PROCESSING_BASELINE>05.09</PROCESSING_BASELINE><PRODUCT_TYPE>S2MSI2A</PRODUCT_TYPE>"
    )
    with open_slide(path) as scene:
        assert scene.require_samples().source == "Sentinel-2 L2A, baseline 05.09"
    expected = np.moveaxis(true, 0, -1) / WHITE_REFLECTANCE * 255
    np.testing.assert_allclose(shown(path)[..., :1], np.clip(expected, 0, 255), atol=0.6)


def test_level_1_of_landsat_is_divided_by_the_height_of_the_sun(tmp_path):
    true = reflectance(shape=(1, 96, 128))
    stored = np.round((true * 0.5 + 0.1) / 2e-5).astype(np.uint16)
    stem = "LC09_L1TP_195028_20230604_20230613_02_T1"
    path = write_scene(tmp_path / f"{stem}_B4.TIF", stored)
    (tmp_path / f"{stem}_MTL.txt").write_text(
        "  REFLECTANCE_MULT_BAND_4 = 2.0000E-05\n  REFLECTANCE_ADD_BAND_4 = -0.100000\n"
        "  SUN_ELEVATION = 30.00000000\n"
    )
    expected = np.moveaxis(true, 0, -1) / WHITE_REFLECTANCE * 255
    np.testing.assert_allclose(shown(path)[..., :1], np.clip(expected, 0, 255), atol=0.8)


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32"])
def test_samples_of_unknown_meaning_are_refused_with_the_flag_that_helps(tmp_path, dtype):
    path = write_scene(tmp_path / "scene.tif", (reflectance() * 1e4).astype(dtype))
    with pytest.raises(MissingScaleError, match=dtype) as caught:
        shown(path)
    assert "--scale" in caught.value.hint
    expected = np.clip(np.moveaxis(reflectance(), 0, -1) * 1e4 / 3000 * 255, 0, 255)
    np.testing.assert_allclose(shown(path, scale=(0, 3000)), expected, atol=0.6)


def test_two_cuts_of_a_scene_give_the_same_input_bits(tmp_path):
    bands = (reflectance(shape=(3, 96, 256)) * 1e4).astype(np.uint16)
    bands[:, :, :128] *= 3  # bright in the west
    whole = write_scene(tmp_path / "whole.tif", bands)
    east = write_scene(tmp_path / "east.tif", bands[:, :, 128:], x=501_280)
    scale = (0, WHITE)
    np.testing.assert_array_equal(shown(whole, scale=scale)[:, 128:], shown(east, scale=scale))


@pytest.mark.parametrize("scale", [(3, 3), (5, 1), (0, float("inf")), (float("nan"), 1)])
def test_a_scale_is_two_numbers_the_lower_first(tmp_path, scale):
    path = write_scene(tmp_path / "scene.tif", (reflectance() * 255).astype(np.uint8))
    with pytest.raises(ValueError, match="scale"):
        open_slide(path, scale=scale)

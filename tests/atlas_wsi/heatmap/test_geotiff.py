from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import rasterio
import tifffile
from rio_cogeo.cogeo import cog_validate

from atlas_wsi.heatmap.formats.geotiff import write_geotiff

if TYPE_CHECKING:
    from pathlib import Path

    from atlas_wsi.heatmap.heatmap import Heatmap


def test_the_file_of_a_scene_is_a_valid_cog_in_its_crs(scene: Heatmap, tmp_path: Path) -> None:
    path = tmp_path / "heatmap.tif"
    write_geotiff(scene, path)
    is_valid, errors, warnings = cog_validate(path, strict=True)
    assert (is_valid, errors, warnings) == (True, [], [])
    with rasterio.open(path) as file:
        assert file.crs.to_epsg() == 32633
        assert file.descriptions == scene.classes
        assert np.isnan(file.nodata)
        assert file.overviews(1) == [2]
        np.testing.assert_array_equal(file.read(), scene.probabilities)
        assert file.tags()["model"] == "lung-he"
        # A cell is 64 pixels of 10 m.
        assert file.transform[:6] == (640, 0, 5e5, 0, -640, 5.4e6)


def test_a_turned_scene_keeps_its_place(make_heatmap, tmp_path: Path) -> None:
    turned = make_heatmap(is_scene=True, transform=(8.0, 6.0, 1e5, 6.0, -8.0, 2e6), step=(32, 64))
    write_geotiff(turned, tmp_path / "heatmap.tif")
    with rasterio.open(tmp_path / "heatmap.tif") as file:
        # Heatmap (col 2, row 3) is level-0 pixel (x 128, y 96).
        assert file.xy(3, 2, offset="ul") == (1e5 + 8 * 128 + 6 * 96, 2e6 + 6 * 128 - 8 * 96)


def test_the_file_of_a_slide_has_a_resolution_and_no_crs(heatmap: Heatmap, tmp_path: Path) -> None:
    path = tmp_path / "heatmap.tif"
    write_geotiff(heatmap, path)
    assert cog_validate(path, strict=True)[0]
    with rasterio.open(path) as file:
        assert file.crs is None
        assert file.transform[:6] == (64, 0, 0, 0, 64, 0)
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        assert page.resolutionunit == 3
        assert page.resolution == pytest.approx((1e4 / 32, 1e4 / 32))  # cells of 32 um, in cm


def test_without_a_prediction_the_file_is_nodata(make_heatmap, tmp_path: Path) -> None:
    write_geotiff(make_heatmap(tissue=0, is_scene=True), tmp_path / "heatmap.tif")
    with rasterio.open(tmp_path / "heatmap.tif") as file:
        assert file.read(masked=True).mask.all()

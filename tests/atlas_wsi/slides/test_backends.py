"""Every reader against the contract of readers."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from PIL import Image

from atlas_wsi.slides.formats.image import open_image
from atlas_wsi.slides.formats.jpeg_tiles import open_aperio
from atlas_wsi.slides.formats.omezarr import open_omezarr
from atlas_wsi.slides.formats.openslide import open_openslide
from atlas_wsi.slides.formats.raster import open_raster
from atlas_wsi.slides.formats.tiff import open_tiff
from atlas_wsi.slides.synthetic_scenes import make_ome_zarr, make_scene
from atlas_wsi.testing.backends import BackendTests, whole_of


class TestOpenSlide(BackendTests):
    open_file = open_openslide

    @pytest.fixture
    def path(self, svs):
        return svs


class TestJpegTiles(BackendTests):
    open_file = open_aperio

    @pytest.fixture
    def path(self, svs):
        return svs

    def test_pixels_are_those_of_openslide(self, path, whole):
        theirs = open_openslide(path)
        for index, level in enumerate(theirs.meta.levels):
            expected = theirs.read_block(index, whole_of(level.shape))
            np.testing.assert_array_equal(whole[index], expected)


class TestPyramidalOmeTiff(BackendTests):
    open_file = open_tiff

    @pytest.fixture(scope="class")
    def path(self, tmp_path_factory, pixels):
        path = tmp_path_factory.mktemp("slides") / "pyramid.ome.tif"
        channels = np.moveaxis(pixels, -1, 0).astype(np.uint16) * 257
        metadata = {"axes": "CYX", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5}
        with tifffile.TiffWriter(path, bigtiff=True) as tif:
            options = {"tile": (128, 128), "compression": "zlib"}
            tif.write(channels, subifds=2, metadata=metadata, **options)
            tif.write(_halved(channels), subfiletype=1, **options)
            tif.write(_halved(_halved(channels)), subfiletype=1, **options)
        return path

    def test_pixels_are_those_written(self, whole, pixels):
        np.testing.assert_array_equal(whole[0], pixels.astype(np.uint16) * 257)


class TestStrippedTiff(BackendTests):
    open_file = open_tiff

    @pytest.fixture(scope="class")
    def path(self, tmp_path_factory, pixels):
        path = tmp_path_factory.mktemp("slides") / "strips.tif"
        tifffile.imwrite(path, pixels, photometric="rgb", rowsperstrip=7, compression="lzw")
        return path

    def test_pixels_are_those_written(self, whole, pixels):
        np.testing.assert_array_equal(whole[0], pixels)


class TestOmeZarr(BackendTests):
    open_file = open_omezarr

    @pytest.fixture(scope="class")
    def path(self, tmp_path_factory, pixels):
        path = tmp_path_factory.mktemp("slides") / "image.ome.zarr"
        make_ome_zarr(path, pixels, levels=3, chunk=128)
        return path

    def test_pixels_are_those_written(self, whole, pixels):
        np.testing.assert_array_equal(whole[0], pixels)


class TestRaster(BackendTests):
    open_file = open_raster

    @pytest.fixture(scope="class")
    def path(self, tmp_path_factory):
        path = tmp_path_factory.mktemp("slides") / "scene.tif"
        make_scene(path, (600, 800), bands=4, dtype="uint16", nodata=0)
        return path


class TestImage(BackendTests):
    open_file = open_image

    @pytest.fixture(scope="class")
    def path(self, tmp_path_factory, pixels):
        path = tmp_path_factory.mktemp("slides") / "image.png"
        Image.fromarray(pixels).save(path)
        return path

    def test_pixels_are_those_written(self, whole, pixels):
        np.testing.assert_array_equal(whole[0], pixels)


def _halved(channels):
    n, rows, cols = channels.shape
    even = channels[:, : rows // 2 * 2, : cols // 2 * 2]
    return even.reshape(n, rows // 2, 2, cols // 2, 2).mean(axis=(2, 4)).astype(channels.dtype)

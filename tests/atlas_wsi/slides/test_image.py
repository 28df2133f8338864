from __future__ import annotations

import pickle

import numpy as np
import pytest
import tifffile
from imagecodecs import png_encode
from PIL import Image

from atlas_wsi.errors import (
    MissingResolutionError,
    SlideError,
    UnreadableSlideError,
    UnsupportedFormatError,
)
from atlas_wsi.grid import Box
from atlas_wsi.slides.formats.image import MAX_PIXELS, open_image
from atlas_wsi.slides.open import open_slide


def colors(rows, cols, channels=3):
    rng = np.random.default_rng(3)
    return rng.integers(0, 256, (rows, cols, channels), dtype=np.uint8)


def read_all(backend):
    rows, cols = backend.meta.levels[0].shape
    box = Box(row=0, col=0, rows=rows, cols=cols)
    return backend.read_block(0, box), backend.read_valid(0, box)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp"])
def test_lossless_formats_come_back(tmp_path, suffix):
    pixels = colors(130, 70)
    path = tmp_path / f"image{suffix}"
    Image.fromarray(pixels).save(path, lossless=True)
    with pickle.loads(pickle.dumps(open_slide(path))) as slide:
        assert slide.meta.format == suffix[1:]
        assert slide.meta.backend == "image"
        assert slide.background == (255, 255, 255)
        np.testing.assert_array_equal(slide.read_region(0, 0, 130, 70), pixels)
        assert (slide.read_region(-5, 0, 5, 70) == 255).all()
        np.testing.assert_array_equal(slide.levels[0].compute(), pixels)


def test_jpeg_reads_as_pillow_decodes_it(tmp_path):
    path = tmp_path / "image.jpg"
    Image.fromarray(colors(64, 48)).save(path, quality=80)
    pixels, valid = read_all(open_image(path))
    np.testing.assert_array_equal(pixels, np.asarray(Image.open(path)))
    assert valid.all()


def test_a_large_image_gets_coarse_levels(tmp_path):
    path = tmp_path / "image.png"
    Image.new("RGB", (3000, 2100), (200, 100, 50)).save(path)
    with open_slide(path) as slide:
        assert slide.downsamples == ((1, 1), (2, 2), (4, 4))
        assert (slide.thumbnail(100)[1:-1, 1:-1] == (200, 100, 50)).all()


# Kinds of pixels ----------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bits_are_kept(tmp_path, channels):
    rng = np.random.default_rng(1)
    stored = rng.integers(0, 65536, (20, 30, channels), dtype=np.uint16)
    stored[0, 0, -1] = 0
    path = tmp_path / "image.png"
    path.write_bytes(png_encode(stored.squeeze()))
    backend = open_image(path)
    pixels, valid = read_all(backend)
    n_channels = 1 if channels < 3 else 3
    assert (backend.meta.dtype, backend.meta.n_channels) == ("uint16", n_channels)
    np.testing.assert_array_equal(pixels, stored[..., :n_channels])
    assert valid[0, 0] == (channels in {1, 3})
    assert valid[1:].all()


def test_gray_is_one_channel(tmp_path):
    Image.fromarray(colors(9, 8, 1)[..., 0]).save(tmp_path / "gray.png")
    backend = open_image(tmp_path / "gray.png")
    assert backend.meta.channel_names == ("gray",)
    np.testing.assert_array_equal(read_all(backend)[0], colors(9, 8, 1))


def test_black_and_white_is_0_and_255(tmp_path):
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "bits.png")
    assert read_all(open_image(tmp_path / "bits.png"))[0].ravel().tolist() == [255, 0]


def test_a_palette_becomes_colors(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "palette.png")
    pixels, _ = read_all(open_image(tmp_path / "palette.png"))
    assert pixels.tolist() == [[[10, 20, 30], [40, 50, 60]]]


def test_transparent_pixels_are_not_valid(tmp_path):
    stored = colors(2, 2, 4)
    stored[..., 3] = [[255, 0], [1, 255]]
    Image.fromarray(stored).save(tmp_path / "rgba.png")
    backend = open_image(tmp_path / "rgba.png")
    pixels, valid = read_all(backend)
    assert backend.meta.has_mask
    np.testing.assert_array_equal(pixels, stored[..., :3])
    assert valid.tolist() == [[True, False], [True, True]]


def test_a_transparent_color_is_not_valid(tmp_path):
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (9, 9, 9))
    image.save(tmp_path / "key.png", transparency=(9, 9, 9))
    assert read_all(open_image(tmp_path / "key.png"))[1].tolist() == [[True, False]]


def test_orientation_is_ignored_and_told(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (20, 10)).save(tmp_path / "turned.jpg", exif=exif)
    meta = open_image(tmp_path / "turned.jpg").meta
    assert meta.levels[0].shape == (10, 20)
    assert "orientation" in meta.warnings[0]


# How large a pixel is -----------------------------------------------------------------------


@pytest.mark.parametrize("dpi", [None, 72, 96, 300])
def test_what_editors_write_is_no_resolution(tmp_path, dpi):
    options = {"dpi": (dpi, dpi)} if dpi else {}
    Image.new("RGB", (20, 10)).save(tmp_path / "image.png", **options)
    with open_slide(tmp_path / "image.png") as slide:
        assert slide.mpp is None
        with pytest.raises(MissingResolutionError, match="--mpp"):
            slide.require_mpp()


def test_a_microscope_resolution_is_believed(tmp_path):
    Image.new("RGB", (20, 10)).save(tmp_path / "image.png", dpi=(50_800, 25_400))
    meta = open_image(tmp_path / "image.png").meta
    assert meta.mpp == pytest.approx((1.0, 0.5), rel=1e-4)
    assert meta.mpp_source == "image resolution"


# What is refused ----------------------------------------------------------------------------


def test_too_large_an_image_is_refused_with_a_way_out(tmp_path):
    path = tmp_path / "huge.png"
    side = int(MAX_PIXELS**0.5) + 1
    Image.new("1", (side, side)).save(path)
    with pytest.raises(UnsupportedFormatError, match="too large") as caught:
        open_slide(path)
    assert "vips tiffsave huge.png huge.tif" in caught.value.hint


def test_an_image_near_the_limit_opens_without_a_warning(tmp_path, recwarn):
    Image.new("1", (10_000, 10_000)).save(tmp_path / "large.png")
    assert open_image(tmp_path / "large.png").meta.levels[0].shape == (10_000, 10_000)
    assert not recwarn.list


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_truncated_image_is_one_hole(tmp_path, suffix):
    path = tmp_path / f"image{suffix}"
    Image.fromarray(colors(300, 300)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with open_slide(path, strict=True) as slide, pytest.raises(UnreadableSlideError):
        slide.read_region(0, 0, 300, 300)
    with open_slide(path) as slide:
        assert (slide.read_region(0, 0, 300, 300) == 255).all()
        assert len(slide.unreadable) == 1


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp"])
@pytest.mark.parametrize("keep", [4, 12, 25, 40, 300])
def test_a_cut_off_header_is_an_error_of_ours(tmp_path, suffix, keep):
    path = tmp_path / f"image{suffix}"
    Image.fromarray(colors(30, 30)).save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(SlideError), open_slide(path, strict=True) as slide:
        slide.read_region(0, 0, 30, 30)


def test_other_formats_are_not_its_business(tmp_path):
    tifffile.imwrite(tmp_path / "image.tif", colors(8, 8))
    with pytest.raises(UnsupportedFormatError):
        open_image(tmp_path / "image.tif")
    (tmp_path / "notes.png").write_text("no image at all")
    with pytest.raises(UnsupportedFormatError):
        open_slide(tmp_path / "notes.png")

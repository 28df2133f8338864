"""TIFF files that no scanner's format covers."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from atlas_wsi.errors import UnreadableSlideError, UnsupportedFormatError
from atlas_wsi.slides.open import open_slide

CM = {"resolution": (20_000, 25_000), "resolutionunit": "CENTIMETER"}


def read_all(path):
    with open_slide(path) as slide:
        return slide.read_region(0, 0, *slide.shape)


# How pixels may be stored ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"tile": (128, 96)},
        {"tile": (128, 128), "compression": "zlib", "predictor": True},
        {"tile": (128, 128), "planarconfig": "separate"},
        {"rowsperstrip": 1000},
        {"rowsperstrip": 33, "compression": "zstd"},
        {"rowsperstrip": 50, "planarconfig": "separate"},
        {"rowsperstrip": 50, "planarconfig": "separate", "compression": "lzw"},
        {"byteorder": ">", "bigtiff": True},
        {"byteorder": ">", "tile": (256, 256), "compression": "packbits"},
    ],
    ids=lambda options: "-".join(f"{k}={v}" for k, v in options.items()),
)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_pixels_are_those_written(tmp_path, pixels, options, dtype):
    path = tmp_path / "stored.tif"
    stored = pixels.astype(dtype) * (257 if dtype == "uint16" else 1)
    if options.get("planarconfig") == "separate":
        tifffile.imwrite(path, np.moveaxis(stored, -1, 0), photometric="rgb", **options)
    else:
        tifffile.imwrite(path, stored, photometric="rgb", **options)
    read = read_all(path)
    assert read.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(read, stored)


@pytest.mark.parametrize(
    ("codec", "settings"),
    [
        ("deflate", {}),
        ("lzw", {}),
        ("packbits", {}),
        ("lzma", {}),
        ("zstd", {}),
        ("lerc", {}),
        ("lerc", {"compression": "deflate"}),
        ("lerc", {"compression": "zstd"}),
        ("png", {}),
        ("jpeg2000", {}),
        ("jpegxr", {}),
        ("jpegxl", {"lossless": True}),
        ("webp", {"lossless": True}),
    ],
    ids=lambda value: value if isinstance(value, str) else value.get("compression", ""),
)
@pytest.mark.parametrize("layout", [{"tile": (128, 128)}, {"rowsperstrip": 100}], ids=list)
def test_every_codec_without_loss_gives_back_the_pixels(tmp_path, pixels, codec, settings, layout):
    path = tmp_path / "a.tif"
    options = {"compression": codec, "compressionargs": settings, "photometric": "rgb"}
    tifffile.imwrite(path, pixels, **options, **layout)
    np.testing.assert_array_equal(read_all(path), pixels)


def test_gray_palette_bilevel_and_inverted_samples_become_what_they_mean(tmp_path, pixels):
    gray = pixels[..., 0]
    tifffile.imwrite(tmp_path / "gray.tif", gray)
    np.testing.assert_array_equal(read_all(tmp_path / "gray.tif")[..., 0], gray)

    tifffile.imwrite(tmp_path / "white.tif", gray, photometric="miniswhite")
    np.testing.assert_array_equal(read_all(tmp_path / "white.tif")[..., 0], 255 - gray)

    table = np.random.default_rng(0).integers(0, 256, (3, 256), dtype=np.uint16)
    options = {"photometric": "palette", "colormap": table * 257}
    tifffile.imwrite(tmp_path / "palette.tif", gray, **options)
    np.testing.assert_array_equal(read_all(tmp_path / "palette.tif"), table.T[gray])

    tifffile.imwrite(tmp_path / "bits.tif", gray > 100, photometric="minisblack")
    np.testing.assert_array_equal(read_all(tmp_path / "bits.tif")[..., 0], (gray > 100) * 255)


def test_transparent_pixels_are_no_observation(tmp_path, pixels):
    alpha = np.full(pixels.shape[:2], 255, np.uint8)
    alpha[100:200, 300:400] = 0
    path = tmp_path / "alpha.tif"
    stored = np.dstack([pixels, alpha])
    tifffile.imwrite(path, stored, photometric="rgb", extrasamples=["unassalpha"], **CM)
    with open_slide(path) as slide:
        assert slide.n_channels == 3
        np.testing.assert_array_equal(slide.read_valid(0, 0, *slide.shape), alpha > 0)
        np.testing.assert_array_equal(slide.read_region(0, 0, *slide.shape), pixels)
        reduced = slide.read_region(100, 300, 20, 20, mpp=2.0)
        np.testing.assert_array_equal(reduced, 255)


def test_missing_tiles_are_background(tmp_path, pixels):
    path = tmp_path / "sparse.tif"
    tiles = (None if i % 3 else pixels[:256, :256] for i in range(12))
    options = {"shape": (700, 900, 3), "dtype": np.uint8, "tile": (256, 256)}
    tifffile.imwrite(path, tiles, compression="zlib", photometric="rgb", **options)
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read_region(0, 0, 256, 256), pixels[:256, :256])
        np.testing.assert_array_equal(slide.read_region(0, 256, 256, 256), 255)
        assert slide.unreadable == []


# Pyramids and stacks ---------------------------------------------------------------------------


def test_the_levels_of_a_pyramid_are_found_though_nothing_marks_them(tmp_path, pixels):
    path = tmp_path / "unmarked.tif"
    with tifffile.TiffWriter(path) as tif:
        for step in (1, 2, 4):
            level = np.ascontiguousarray(pixels[::step, ::step])
            tif.write(level, tile=(128, 128), photometric="rgb", metadata=None, **CM)
    with open_slide(path) as slide:
        assert slide.downsamples == ((1, 1), (2, 2), (4, 4))
        read = slide.read_region(0, 0, 175, 225, mpp=(0.4 * 4, 0.5 * 4))
        np.testing.assert_array_equal(read, pixels[::4, ::4])


def test_channels_of_an_ome_tiff_have_names_and_physical_sizes(tmp_path):
    path = tmp_path / "multi.ome.tif"
    image = np.random.default_rng(0).integers(0, 4000, (4, 300, 400), dtype=np.uint16)
    metadata = {
        "axes": "CYX",
        "PhysicalSizeX": 650.0,
        "PhysicalSizeXUnit": "nm",
        "PhysicalSizeY": 0.00065,
        "PhysicalSizeYUnit": "mm",
        "Channel": {"Name": ["DAPI", "CD3", "CD8", "PanCK"]},
    }
    tifffile.imwrite(path, image, metadata=metadata, tile=(128, 128))
    with open_slide(path) as slide:
        assert slide.meta.format == "ome-tiff"
        assert slide.meta.channel_names == ("DAPI", "CD3", "CD8", "PanCK")
        assert slide.mpp == pytest.approx((0.65, 0.65))
        assert slide.mpp_source == "OME PhysicalSize"
        assert slide.background == (0, 0, 0, 0)
        read = slide.read_region(0, 0, 300, 400)
        np.testing.assert_array_equal(np.moveaxis(read, -1, 0), image)


def test_of_time_and_focus_the_first_image_is_read_and_said_so(tmp_path):
    path = tmp_path / "stack.ome.tif"
    image = np.random.default_rng(0).integers(0, 255, (2, 3, 2, 200, 150), dtype=np.uint8)
    tifffile.imwrite(path, image, metadata={"axes": "TZCYX"})
    with open_slide(path) as slide:
        assert slide.n_channels == 2
        assert [w[:6] for w in slide.meta.warnings] == ["axis T", "axis Z"]
        read = slide.read_region(0, 0, 200, 150)
        np.testing.assert_array_equal(np.moveaxis(read, -1, 0), image[0, 0])


def test_of_plain_pages_the_largest_image_is_read(tmp_path, pixels):
    path = tmp_path / "pages.tif"
    with tifffile.TiffWriter(path) as tif:
        tif.write(pixels[:50, :60], photometric="rgb", metadata=None)
        tif.write(pixels, photometric="rgb", metadata=None)
    np.testing.assert_array_equal(read_all(path), pixels)


# Resolution ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resolution", "unit", "mpp"),
    [
        ((20_000, 25_000), "CENTIMETER", (0.4, 0.5)),
        ((50_800, 50_800), "INCH", (0.5, 0.5)),
        ((72, 72), "INCH", None),
        ((96, 96), "INCH", None),
        ((300, 300), "INCH", None),
        ((118.11, 118.11), "CENTIMETER", None),
        ((28.346, 28.346), "CENTIMETER", None),
        ((1, 1), "CENTIMETER", None),
        ((20_000, 20_000), "NONE", None),
        ((1e8, 1e8), "CENTIMETER", None),
    ],
)
def test_resolution_tags_are_believed_if_a_microscope_could_have_them(
    tmp_path, pixels, resolution, unit, mpp
):
    path = tmp_path / "tags.tif"
    tifffile.imwrite(path, pixels, resolution=resolution, resolutionunit=unit)
    with open_slide(path) as slide:
        assert slide.mpp == (None if mpp is None else pytest.approx(mpp))
        assert slide.mpp_source == ("TIFF resolution" if mpp else "")


# Damage ----------------------------------------------------------------------------------------


def test_tiles_behind_the_end_of_a_truncated_file_are_counted_and_placed(tmp_path, pixels):
    path = tmp_path / "cut.tif"
    tifffile.imwrite(path, pixels, tile=(128, 128), photometric="rgb", metadata=None, **CM)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UnreadableSlideError, match="truncated") as refused:
        open_slide(path)
    assert "--allow-truncated" in refused.value.hint
    with open_slide(path, allow_truncated=True) as slide:
        read = slide.read_region(0, 0, *slide.shape)
        boxes = [tile.box for tile in slide.unreadable]
        assert 22 <= len(boxes) <= 26
        assert all("truncated" in tile.reason for tile in slide.unreadable)
        readable = np.ones(slide.shape, bool)
        for box in boxes:
            readable[box.slices] = False
        np.testing.assert_array_equal(read[readable], pixels[readable])
        np.testing.assert_array_equal(read[~readable], 255)
        np.testing.assert_array_equal(slide.read_valid(0, 0, *slide.shape), readable)


def test_an_unknown_compression_is_refused_on_opening(tmp_path, pixels):
    path = tmp_path / "odd.tif"
    tifffile.imwrite(path, pixels, tile=(128, 128), compression="zlib")
    with tifffile.TiffFile(path, mode="r+b") as tif:
        tif.pages[0].tags["Compression"].overwrite(52479)
    with pytest.raises(UnsupportedFormatError, match="52479"):
        open_slide(path)


def test_a_closed_slide_says_so(tmp_path, pixels):
    path = tmp_path / "closed.tif"
    tifffile.imwrite(path, pixels, tile=(128, 128))
    slide = open_slide(path)
    slide.close()
    with pytest.raises(ValueError, match="is closed"):
        slide.read_region(0, 0, 10, 10)

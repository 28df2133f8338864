"""Inputs that fuzzing found, and a short run of the fuzzer itself."""

from __future__ import annotations

import json
import lzma
import re
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import h5py
import imagecodecs
import numcodecs
import numpy as np
import pytest
import tifffile
import torch
import zarr
from PIL import Image

import atlas_wsi
from atlas_wsi.batch.journal import Journal, Row, now
from atlas_wsi.batch.source import list_slides
from atlas_wsi.batch.start_run import begin
from atlas_wsi.errors import (
    CheckpointMismatchError,
    DatasetError,
    UnreadableSlideError,
    UnsupportedFormatError,
)
from atlas_wsi.files import BoundedFile
from atlas_wsi.models.checkpoints import read_weights
from atlas_wsi.slides.open import open_slide
from atlas_wsi.slides.synthetic import make_svs
from atlas_wsi.tissue.areas import read_tissue
from atlas_wsi.training.data.labeled_areas import areas_by_class
from atlas_wsi.training.data.region_table import read_regions

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.mark.slow
def test_a_short_run_finds_nothing(tmp_path):
    command = [sys.executable, SCRIPTS / "fuzz.py", "--inputs", "1500", "--seed", "7"]
    done = subprocess.run(
        [*command, "--findings", tmp_path / "findings"], capture_output=True, text=True, check=False
    )
    found = json.loads(done.stdout)

    assert found["findings"] == {}
    assert found["inputs"] == 1500
    assert done.returncode == 0


def test_a_row_that_ends_early_is_refused(tmp_path):
    (tmp_path / "list.csv").write_text("slide,regions\na.svs\n")

    with pytest.raises(DatasetError, match="line 2"):
        read_regions(tmp_path / "list.csv")


@pytest.mark.parametrize("text", ["null", "3", '{"features": 1}', "[" * 100_000])
def test_json_that_is_no_geojson_is_refused(tmp_path, text):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((64, 64, 3), np.uint8))
    (tmp_path / "a.geojson").write_text(text)

    with open_slide(tmp_path / "a.tif") as slide, pytest.raises(DatasetError, match="GeoJSON"):
        areas_by_class(tmp_path / "a.geojson", slide)


def test_a_safetensors_header_that_is_cut_is_refused(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"\xff\xff\xff\xff\x00\x00\x00\x00x")

    with pytest.raises(CheckpointMismatchError):
        read_weights(tmp_path / "a.safetensors")


@pytest.mark.parametrize(("tag", "value"), [(322, 0), (323, 0)])
def test_a_tile_without_a_side_is_refused(tmp_path, tag, value):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((64, 64, 3), np.uint8), tile=(32, 32))
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        where = tif.pages.first.tags[tag].valueoffset
    data = bytearray((tmp_path / "a.tif").read_bytes())
    struct.pack_into("<H", data, where, value)
    (tmp_path / "a.tif").write_bytes(data)

    with pytest.raises(UnreadableSlideError), open_slide(tmp_path / "a.tif") as slide:
        slide.read_region(0, 0, 8, 8)


# 256 width, 273 strip offsets, 279 their sizes: 11 is a float, 2 text, 3 and 4 are whole numbers
@pytest.mark.parametrize(
    ("tag", "kind", "value"),
    [
        (256, 4, 2**31),
        (256, 4, 2**31 - 1),
        (256, 11, 2**30),
        (273, 4, 2**31),
        (273, 11, 2**30),
        (273, 2, 65),
        (279, 4, 2**32 - 1),
    ],
)
def test_a_plain_page_with_a_tag_beyond_reason_is_refused(tmp_path, tag, kind, value):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((64, 64, 3), np.uint8), photometric="rgb")
    with tifffile.TiffFile(path) as tif:
        where = tif.pages.first.tags[tag].offset
    data = bytearray(path.read_bytes())
    struct.pack_into("<HII", data, where + 2, kind, 1, value)
    path.write_bytes(data)

    try:
        with open_slide(path) as slide:
            pixels = slide.read_region(0, 0, 8, 8)
        assert pixels.shape == (8, 8, 3)  # the tag does not matter for the pixels asked for
    except (UnreadableSlideError, UnsupportedFormatError) as error:
        assert str(path) in str(error)  # noqa: PT017 -- either outcome is right


@pytest.mark.parametrize("name", ["a.svs", "a.tif"])
def test_a_tile_that_would_fill_the_memory_is_refused_before_it_is_asked_for(tmp_path, name):
    path = tmp_path / name
    make_svs(path, (128, 128), tile=64, levels=1)
    with tifffile.TiffFile(path) as tif:
        where = [tif.pages.first.tags[tag].offset for tag in (322, 323)]
    data = bytearray(path.read_bytes())
    for at in where:
        struct.pack_into("<HII", data, at + 2, 4, 1, 2**24)
    path.write_bytes(data)

    with pytest.raises(UnreadableSlideError, match=re.escape(str(path))):
        open_slide(path)


def test_ome_xml_that_is_nested_without_end_is_refused(tmp_path):
    xml = "<OME>" + "<a>" * 5000 + "</a>" * 5000 + "</OME>"
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, np.zeros((64, 64, 3), np.uint8), photometric="rgb", description=xml)

    with pytest.raises(UnreadableSlideError, match="makes no sense"):
        open_slide(path)


def test_a_home_of_nobody_is_a_path_like_any_other(tmp_path):
    (tmp_path / "batch.csv").write_text("slide\n~nosuchuser/a.svs\n")

    ((path, _),) = list_slides(tmp_path / "batch.csv")

    assert path == str(tmp_path / "~nosuchuser/a.svs")


@pytest.mark.slow
def test_an_archive_whose_empty_folders_were_not_copied_is_told(tmp_path):
    make_svs(tmp_path / "a.svs", (256, 256), tile=64, levels=1)
    options = atlas_wsi.BatchOptions(model="atlas_test")
    atlas_wsi.predict_archive(tmp_path / "a.svs", tmp_path / "out", options=options)
    shutil.rmtree(tmp_path / "out" / ".batch" / "leases")

    assert atlas_wsi.archive_status(tmp_path / "out").count("done") == 1


def test_metadata_that_grows_out_of_a_zip_file_are_refused(tmp_path):
    path = tmp_path / "a.zarr.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zarr.json", b" " * (64 * 2**20))

    with pytest.raises(UnsupportedFormatError, match=r"zarr\.json has 67108864 bytes"):
        open_slide(path)


@pytest.mark.parametrize(
    ("tag", "kind", "value"),
    [
        (256, 4, 75_568_158),  # a row of 226 MB
        (257, 9, 2**32 - 128),  # -128 rows: the search for series never ended
        (278, 11, 255),  # rows a strip as a tiny fraction
    ],
)
def test_sizes_that_are_no_sizes_are_refused(tmp_path, tag, kind, value):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((64, 64, 3), np.uint8), bigtiff=True, photometric="rgb")
    with tifffile.TiffFile(path) as tif:
        where = tif.pages.first.tags[tag].offset
    data = bytearray(path.read_bytes())
    struct.pack_into("<HQI", data, where + 2, kind, 1, value)
    path.write_bytes(data)

    with pytest.raises(UnreadableSlideError, match="makes no sense"):
        open_slide(path)


@pytest.mark.parametrize("is_allowed", [False, True])
def test_a_stored_tile_larger_than_the_file_is_refused_before_it_is_asked_for(tmp_path, is_allowed):
    path = tmp_path / "a.svs"
    make_svs(path, (128, 128), tile=64, levels=1)
    with tifffile.TiffFile(path) as tif:
        where = tif.pages.first.tags[325].valueoffset
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, where, 2**31)
    path.write_bytes(data)

    with pytest.raises(UnreadableSlideError, match="2147483648 bytes"):
        open_slide(path, allow_truncated=is_allowed)


def test_a_mask_whose_header_is_cut_or_goes_on_for_gigabytes_is_refused(tmp_path):
    with open_slide(_slide(tmp_path)) as slide:
        Image.new("L", (64, 64), 255).save(tmp_path / "mask.png")
        whole = (tmp_path / "mask.png").read_bytes()
        for at, value in ((8, 3), (33, 2**32 - 1)):  # length of IHDR, of what follows it
            data = bytearray(whole)
            struct.pack_into(">I", data, at, value)
            (tmp_path / "mask.png").write_bytes(data)
            try:
                mask = read_tissue(tmp_path / "mask.png", slide)
                assert mask.fraction == 1  # the pixels are all there
            except DatasetError as error:
                assert "mask.png" in str(error)  # noqa: PT017 -- either outcome is right


def test_a_pickle_that_claims_gigabytes_is_refused(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"\x80\x02X\xff\xff\xff\x7fx")

    with pytest.raises(CheckpointMismatchError):
        read_weights(tmp_path / "a.pth")


def test_a_file_gives_what_it_has_and_no_room_for_more(tmp_path):
    (tmp_path / "a").write_bytes(b"0123456789")
    with BoundedFile(tmp_path / "a") as file:
        assert file.read(4) == b"0123"
        assert file.read(2**50) == b"456789"
        assert file.read(1) == b""
        file.seek(8)
        assert file.read() == b"89"


@pytest.mark.parametrize("ended", ["-1e999026-11-24T02:09:28.095+00:00", "2026-11-24T02:09:28"])
def test_a_slide_whose_row_has_no_time_is_done_again(tmp_path, ended):
    folder = tmp_path / "slides"
    folder.mkdir()
    make_svs(folder / "a.svs", (256, 256), tile=64, levels=1)
    journal = Journal(tmp_path / "out")
    begin(journal, folder, atlas_wsi.BatchOptions())
    (slide,) = journal.read_slides()
    journal.write_row(Row(name=slide.name, source=slide.source, state="done", ended=now()))
    (row,) = journal.rows_folder.glob("*.json")
    row.write_text(json.dumps(json.loads(row.read_text()) | {"ended": ended}))

    assert atlas_wsi.archive_status(tmp_path / "out").count("waiting") == 1  # it is done again


def _slide(folder):
    path = folder / "a.tif"
    tifffile.imwrite(path, np.zeros((64, 64, 3), np.uint8), photometric="rgb")
    return path


def _tile(path, codec, encoded, extra=()):
    """Write a TIFF file of one tile, encoded elsewhere."""
    options = {"shape": (64, 64, 3), "dtype": "u1", "tile": (64, 64), "photometric": "rgb"}
    tifffile.imwrite(path, iter([encoded]), compression=codec, extratags=extra, **options)
    return path


SQUARE = np.zeros((64, 64, 3), np.uint8)
GEO = (
    (33550, 12, 3, (10.0, 10.0, 0.0), True),
    (33922, 12, 6, (0.0, 0.0, 0.0, 5e5, 5e6, 0.0), True),
    (34735, 3, 12, (1, 1, 0, 2, 1024, 0, 1, 1, 3072, 0, 1, 32633), True),
)


def _claims(codec, **options):
    """Encode a tile whose header says that it has 65500 x 65500 pixels."""
    data = bytearray(getattr(imagecodecs, f"{codec}_encode")(SQUARE, **options))
    places = {  # what the sizes follow, how many bytes later, and how they are written
        "jpeg8": [(b"\xff\xc0", 5, ">HH", 65500)],
        "jpeg2k": [(b"\xff\x4f\xff\x51", 8, ">II", 65500)],
        "png": [(b"IHDR", 4, ">II", 65500)],
        "jpegxr": [(b"\x80\xbc\4\0\1\0\0\0", 8, "<I", 65500), (b"WMPHOTO\0", 12, ">HH", 65499)],
        "lerc": [(b"Lerc2 ", 14, "<II", 65500)],
    }
    for mark, at, form, side in places[codec]:
        struct.pack_into(form, data, data.index(mark) + at, *[side] * (len(form) - 1))
    return bytes(data)


def _jpeg_xl(rows, cols, *metadata):
    """Write a header of JPEG XL: values and their bits."""
    value = at = 0
    for part, n_bits in ((0, 1), (3, 2), (rows - 1, 30), (0, 3), (3, 2), (cols - 1, 30), *metadata):
        value, at = value | part << at, at + n_bits
    return b"\xff\x0a" + value.to_bytes(64, "little")


EXTRA_CHANNELS = ((0, 1), (0, 1), (0, 1), (0, 2), (1, 1), (3, 2), (4095, 12))
ANIMATION = ((0, 1), (1, 1), (0, 3), (0, 1), (2, 2))
BOXES = b"\0\0\0\x0cJXL \r\n\x87\n" + b"\0\0\0\x09free\0" + b"\0\0\0\0jxlc"
RIFF = b"RIFF\xff\0\0\0WEBP"
PICTURES = {  # the number of a compression in TIFF, a tile, and what is said of it
    "JPEG": (7, _claims("jpeg8"), "65500 x 65500 x 3"),
    "JPEG 2000": (34712, _claims("jpeg2k", codecformat="j2k"), "65500 x 65500 x 3"),
    "JPEG 2000 in boxes": (34712, _claims("jpeg2k", codecformat="jp2"), "65500 x 65500 x 3"),
    "PNG": (34933, _claims("png"), "65500 x 65500"),
    "JPEG XR": (34934, _claims("jpegxr"), "65500 x 65500"),
    "LERC": (34887, _claims("lerc"), "65500 x 65500 x 3"),
    "LERC in zlib": (34887, zlib.compress(_claims("lerc")), "65500 x 65500 x 3"),
    "many LERC": (34887, bytes(imagecodecs.lerc_encode(SQUARE)) * 9999, "64 x 64 x 29997"),
    "LERC that grows": (34887, zlib.compress(bytes(2**24)), "grows to"),
    "WebP VP8X": (50001, RIFF + b"VP8X\n\0\0\0\0\0\0\0" + b"\xdb\xff\0" * 2, "65500 x 65500"),
    "WebP VP8": (
        50001,
        RIFF + b"VP8 \xff\0\0\0\0\0\0\x9d\1\x2a" + b"\xff\x3f" * 2,
        "16383 x 16383",
    ),
    "WebP VP8L": (50001, RIFF + b"VP8L\xff\0\0\0\x2f" + b"\xff\xff\xff\x0f", "16384 x 16384"),
    "JPEG XL": (50002, _jpeg_xl(65500, 65500, (1, 1)), "65500 x 65500 x 3"),
    "JPEG XL in boxes": (50002, BOXES + _jpeg_xl(65500, 65500, (1, 1)), "65500 x 65500 x 3"),
    "JPEG XL of channels": (50002, _jpeg_xl(64, 64, *EXTRA_CHANNELS), "64 x 64 x 4099"),
    "JPEG XL of frames": (50002, _jpeg_xl(64, 64, *ANIMATION), "animation"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_tile_whose_picture_is_beyond_its_tile_is_refused_before_it_is_decoded(tmp_path, name):
    codec, encoded, said = PICTURES[name]
    path = _tile(tmp_path / "a.tif", codec, encoded)

    with open_slide(path, strict=True) as slide, pytest.raises(UnreadableSlideError, match=said):
        slide.read_region(0, 0, 8, 8)


@pytest.mark.parametrize("n_pages", [1, 150])
def test_directories_in_a_loop_are_refused(tmp_path, n_pages):
    """They were read without end."""
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        for _ in range(n_pages):
            file.write(np.zeros((8, 8), np.uint8), metadata=None)
    with tifffile.TiffFile(path) as tif:
        last = tif.pages[-1]
        where = last.offset + 2 + 12 * len(last.tags)  # of the next directory
        again = tif.pages[n_pages // 2].offset
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, where, again)
    path.write_bytes(data)

    with pytest.raises(UnreadableSlideError, match="again and again"):
        open_slide(path)


def test_pages_that_do_not_fit_together_are_refused(tmp_path):
    path = tmp_path / "a.tif"
    pixels = np.zeros((128, 96, 3), np.uint8)
    with tifffile.TiffWriter(path) as file:
        file.write(pixels, photometric="rgb")
        file.write(pixels[:100, :50].astype(np.uint16), photometric="rgb")
        file.write(pixels[..., 0], photometric="minisblack")
    with tifffile.TiffFile(path) as tif:
        where = tif.pages.first.tags[277].offset
    data = bytearray(path.read_bytes())
    struct.pack_into("<H", data, where + 2, 19)  # samples per pixel of an unknown type
    path.write_bytes(data)

    with pytest.raises(UnreadableSlideError, match="incompatible keyframe"):
        open_slide(path)


def test_pixels_without_samples_are_refused(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, SQUARE[..., 0], tile=(32, 32))
    with tifffile.TiffFile(path) as tif:
        where = tif.pages.first.tags[277].valueoffset
    data = bytearray(path.read_bytes())
    struct.pack_into("<H", data, where, 0)
    path.write_bytes(data)

    with pytest.raises(UnreadableSlideError, match="number of samples 0"):
        open_slide(path)


def _pyramid(path):
    """Write a page with two levels below it; return the bytes and the tags of all three."""
    options = {"photometric": "rgb", "tile": (32, 32)}
    with tifffile.TiffWriter(path) as file:
        file.write(SQUARE, subifds=2, **options)
        file.write(SQUARE[::2, ::2], subfiletype=1, **options)
        file.write(SQUARE[::4, ::4], subfiletype=1, **options)
    with tifffile.TiffFile(path) as tif:
        page = tif.pages.first
        return bytearray(path.read_bytes()), [part.tags for part in (page, *page.pages)]


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("no_tile", [False, True])
def test_a_level_with_a_negative_side_is_refused(tmp_path, level, no_tile):
    """The search for series never ended, if a tag without values had ended the check."""
    data, tags = _pyramid(tmp_path / "a.tif")
    struct.pack_into("<HIi", data, tags[level][257].offset + 2, 6, 1, 0x80)  # -128
    if no_tile:
        struct.pack_into("<I", data, tags[level][323].offset + 4, 0)
    (tmp_path / "a.tif").write_bytes(data)

    with pytest.raises(UnreadableSlideError, match="makes no sense"):
        open_slide(tmp_path / "a.tif")


def test_levels_within_levels_are_refused(tmp_path):
    data, tags = _pyramid(tmp_path / "a.tif")
    below = tags[1][305].offset  # the program becomes the offset of a level
    struct.pack_into("<HHII", data, below, 330, 4, 1, 8)
    (tmp_path / "a.tif").write_bytes(data)

    with pytest.raises(UnreadableSlideError, match="within levels"):
        open_slide(tmp_path / "a.tif")


def test_a_directory_without_sense_hides_no_other(tmp_path):
    """What could not be computed with ended the check of all directories."""
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for tile in (None, None, (64, 64)):
            file.write(SQUARE, photometric="rgb", tile=tile, metadata=None)
    with tifffile.TiffFile(path) as tif:
        strips = [tif.pages[n].tags[278].offset for n in (0, 1)]
        tiles = [tif.pages[2].tags[tag].offset for tag in (322, 323)]
    data = bytearray(path.read_bytes())
    struct.pack_into("<H", data, strips[1] + 2, 12)  # rows per strip as a tiny fraction
    for at in tiles:
        struct.pack_into("<HQI", data, at + 2, 4, 1, 2**24)
    path.write_bytes(data)
    with pytest.raises(UnreadableSlideError, match=r"\(directory 2\)"):
        open_slide(path)

    struct.pack_into("<H", data, strips[0] + 2, 12)
    path.write_bytes(data)
    with pytest.raises(UnreadableSlideError, match="makes no sense: OverflowError"):
        open_slide(path)


ZEROS = bytes(2**27)
BYTES = {
    "deflate": (8, lambda: zlib.compress(ZEROS)),
    "LZW": (5, lambda: imagecodecs.lzw_encode(ZEROS[: 2**26])),
    "PackBits": (32773, lambda: b"\x81\0" * 2**20),
    "LZMA": (34925, lambda: lzma.compress(ZEROS)),
    "Zstandard": (50000, lambda: imagecodecs.zstd_encode(ZEROS)),
    "LERC": (34887, lambda: imagecodecs.lerc_encode(np.zeros((6000, 6000, 3), np.uint8))),
    "WebP": (
        50001,
        lambda: imagecodecs.webp_encode(np.zeros((6000, 6000, 3), np.uint8), lossless=True),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("extra", [(), GEO], ids=["tiff", "geotiff"])
@pytest.mark.parametrize("name", BYTES)
def test_a_tile_that_grows_takes_no_room(tmp_path, name, extra):
    """A hundred megabytes in tiles of 12 kB."""
    codec, make = BYTES[name]
    path = _tile(tmp_path / "a.tif", codec, bytes(make()), extra)
    code = (
        "import resource, sys, atlas_wsi\n"
        "slide = atlas_wsi.open_slide(sys.argv[1])\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "slide.read_region(0, 0, 8, 8)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 2**26


def test_a_checkpoint_whose_members_grow_is_refused(tmp_path):
    torch.save({"w": torch.ones(3)}, tmp_path / "whole.pth")
    with (
        zipfile.ZipFile(tmp_path / "whole.pth") as whole,
        zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))

    assert set(read_weights(tmp_path / "whole.pth")) == {"w"}
    with pytest.raises(CheckpointMismatchError, match="compressed members"):
        read_weights(tmp_path / "a.pth")


@pytest.mark.slow
def test_tiles_whose_chunk_grows_are_refused(tmp_path):
    inflated = zlib.compressobj(9)
    block = bytes(2**24)
    chunk = b"".join(inflated.compress(block) for _ in range(17)) + inflated.flush()
    with h5py.File(tmp_path / "a.h5", "w") as file:
        coords = file.create_dataset("coords", (2, 2), "i8", chunks=(2, 2), compression="gzip")
        coords.attrs.update(patch_size=64, patch_level=0)
        coords.id.write_direct_chunk((0, 0), chunk)

    slide = open_slide(_slide(tmp_path), mpp=0.5)
    with slide, pytest.raises(DatasetError, match="grows beyond"):
        read_tissue(tmp_path / "a.h5", slide)


@pytest.mark.parametrize("filters", [{"compression": "lzf"}, {"scaleoffset": 0}, "gzip twice"])
def test_tiles_in_filters_without_a_bound_are_refused(tmp_path, filters):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        if filters == "gzip twice":
            plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plist.set_chunk((2, 2))
            plist.set_filter(h5py.h5z.FILTER_DEFLATE, 0, (4,))
            plist.set_filter(h5py.h5z.FILTER_DEFLATE, 0, (4,))
            space = h5py.h5s.create_simple((2, 2))
            h5py.h5d.create(file.id, b"coords", h5py.h5t.NATIVE_INT64, space, plist)
            file["coords"][:] = 0
        else:
            file.create_dataset("coords", data=np.zeros((2, 2), int), chunks=(2, 2), **filters)
        file["coords"].attrs.update(patch_size=64, patch_level=0)

    slide = open_slide(_slide(tmp_path), mpp=0.5)
    with slide, pytest.raises(DatasetError, match="packed by"):
        read_tissue(tmp_path / "a.h5", slide)


def test_a_blosc_chunk_that_says_it_is_longer_than_it_is_is_refused(tmp_path):
    """The library read on, beyond the end of its memory."""
    group = zarr.create_group(tmp_path / "a.zarr", zarr_format=2)
    scale = {"type": "scale", "scale": [1.0, 1.0]}
    datasets = [{"path": "0", "coordinateTransformations": [scale]}]
    axes = [{"name": name, "type": "space"} for name in "yx"]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    pixels = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    group.create_array("0", data=pixels, chunks=(64, 64), compressors=numcodecs.Blosc())
    chunk = tmp_path / "a.zarr" / "0" / "0.0"
    data = bytearray(chunk.read_bytes())
    struct.pack_into("<I", data, 12, 600_000_000)
    chunk.write_bytes(data)

    slide = open_slide(tmp_path / "a.zarr", mpp=0.5, strict=True)
    with slide, pytest.raises(UnreadableSlideError, match="ends early"):
        slide.read_region(0, 0, 8, 8)


def test_a_packed_chunk_of_a_zip_file_that_grows_is_refused(tmp_path):
    path = tmp_path / "a.zarr.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(".zgroup", '{"zarr_format": 2}')
        with archive.open("0/0.0.0", "w") as member:
            for _ in range(257):
                member.write(bytes(2**20))

    with pytest.raises(UnsupportedFormatError, match=r"0/0\.0\.0 has 269484032 bytes"):
        open_slide(path)

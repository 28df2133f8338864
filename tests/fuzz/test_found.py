"""Inputs that fuzzing found, and a short run of the fuzzer itself."""

from __future__ import annotations

import importlib.util
import re
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile

import atlas_wsi
from atlas_wsi.batch.source import list_slides
from atlas_wsi.errors import (
    CheckpointMismatchError,
    DatasetError,
    UnreadableSlideError,
    UnsupportedFormatError,
)
from atlas_wsi.models.checkpoints import read_weights
from atlas_wsi.slides.open import open_slide
from atlas_wsi.slides.synthetic import make_svs
from atlas_wsi.training.regions import areas_by_class, read_list


def _fuzz():
    path = Path(__file__).parents[2] / "scripts" / "fuzz.py"
    spec = importlib.util.spec_from_file_location("fuzz", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_short_run_finds_nothing(tmp_path):
    found = _fuzz().run(1500, 7, None, tmp_path / "findings", minutes=5)

    assert found["findings"] == {}
    assert found["inputs"] == 1500


def test_a_row_that_ends_early_is_refused(tmp_path):
    (tmp_path / "list.csv").write_text("slide,regions\na.svs\n")

    with pytest.raises(DatasetError, match="row 1"):
        read_list(tmp_path / "list.csv")


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

"""Chunks of OME-Zarr decode to what their array says, or are refused before they fill the memory."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
import subprocess
import sys
import zlib

import numcodecs
import numpy as np
import pytest
import zarr

from atlas_wsi import open_slide
from atlas_wsi.errors import UnreadableSlideError

SIDE = 512
MORE = "grows to|too small"  # the second is what the zstd library says
V2 = ["blosc", "bz2", "gzip", "lz4", "lzma", "zlib", "zstd"]
V3 = ["blosc", "gzip", "zstd", *(f"numcodecs.{name}" for name in V2)]
LAYOUTS = [(2, name) for name in V2] + [(3, name) for name in V3]


def compressor(version, name):
    if version == 2:
        return numcodecs.get_codec({"id": name})
    return {"name": name, "configuration": {}}


def write(path, pixels, version, name, *, shards=None):
    """Write an OME-Zarr of one level in chunks of 512 px."""
    group = zarr.create_group(path, zarr_format=version)
    group.create_array(
        "0",
        data=pixels,
        chunks=(3, SIDE, SIDE),
        shards=shards,
        compressors=[compressor(version, name)],
    )
    scale = {"type": "scale", "scale": [1.0, 0.5, 0.5]}
    axes = [{"name": "c", "type": "channel"}] + [
        {"name": name, "type": "space", "unit": "micrometer"} for name in "yx"
    ]
    datasets = [{"path": "0", "coordinateTransformations": [scale]}]
    image = {"version": "0.4", "axes": axes, "datasets": datasets}
    group.attrs.update(
        {"multiscales": [image]}
        if version == 2
        else {"ome": {"version": "0.5", "multiscales": [image]}}
    )


def pack(name, size):
    """Zeros that take next to no room."""
    match name.rpartition(".")[2]:
        case "gzip":
            return gzip.compress(bytes(size))
        case "bz2":
            return bz2.compress(bytes(size))
        case "zlib":
            return zlib.compress(bytes(size))
        case "lzma":
            return lzma.compress(bytes(size))
        case codec:
            return bytes(numcodecs.get_codec({"id": codec}).encode(np.zeros(size, np.uint8)))


def first_chunk(path):
    chunks = [one for one in (path / "0").rglob("*") if one.is_file() and one.suffix != ".json"]
    return min(one for one in chunks if not one.name.startswith("."))


@pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")
@pytest.mark.parametrize(("version", "name"), LAYOUTS)
def test_every_codec_gives_back_the_pixels(tmp_path, version, name):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 700, 900), dtype=np.uint8)
    write(tmp_path / "a.zarr", pixels, version, name)
    with open_slide(tmp_path / "a.zarr") as slide:
        found = slide.read_region(0, 0, 700, 900)
    assert np.array_equal(found, pixels.transpose(1, 2, 0))


@pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")
@pytest.mark.parametrize(("version", "name"), LAYOUTS)
def test_a_chunk_that_grows_is_refused(tmp_path, version, name):
    path = tmp_path / "a.zarr"
    write(path, np.full((3, SIDE, SIDE), 7, np.uint8), version, name)
    first_chunk(path).write_bytes(pack(name, 2**24))
    with open_slide(path, strict=True) as slide, pytest.raises(UnreadableSlideError, match=MORE):
        slide.read_region(0, 0, 8, 8)


def test_shards_are_bounded_within(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 1024, 1024), dtype=np.uint8)
    write(tmp_path / "a.zarr", pixels, 3, "zstd", shards=(3, 1024, 1024))
    with open_slide(tmp_path / "a.zarr") as slide:
        assert np.array_equal(slide.read_region(0, 0, 1024, 1024), pixels.transpose(1, 2, 0))


def test_a_zstd_chunk_without_a_size_is_read(tmp_path):
    """Writers that stream do not know it when they begin."""
    import imagecodecs

    path = tmp_path / "a.zarr"
    pixels = np.random.default_rng(0).integers(0, 4, (3, SIDE, SIDE), dtype=np.uint8)
    write(path, pixels, 2, "zstd")
    packed = imagecodecs.zstd_encode(pixels.tobytes())
    # without the size: a window of 2^20 bytes and the same blocks, RFC 8878, section 3.1.1
    size_of_header = 4 + 1 + 4
    assert packed[4] >> 5 == 0b101, "one segment, and four bytes of size"
    bare = packed[:4] + bytes([packed[4] & 0b11111, 10 << 3]) + packed[size_of_header:]
    first_chunk(path).write_bytes(bare)
    with open_slide(path) as slide:
        assert np.array_equal(slide.read_region(0, 0, SIDE, SIDE), pixels.transpose(1, 2, 0))


@pytest.mark.parametrize("name", ["zstd", "gzip", "numcodecs.bz2"])
@pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")
def test_a_bomb_needs_less_than_a_gigabyte(tmp_path, name):
    """Two gigabytes of zeros in a chunk of 0.8 MB, in a process that may not have that much."""
    path = tmp_path / "a.zarr"
    write(path, np.full((3, SIDE, SIDE), 7, np.uint8), 3, name)
    piece = pack(name, 2**27)
    first_chunk(path).write_bytes(piece * 16)  # members or frames one after the other
    code = (
        "import resource, sys, atlas_wsi\n"
        "slide = atlas_wsi.open_slide(sys.argv[1], strict=True)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: slide.read_region(0, 0, 8, 8)\n"
        "except atlas_wsi.errors.UnreadableSlideError as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert re.search(MORE, done.stdout)
    assert int(done.stderr) * 1024 < 2**29


def test_metadata_of_gigabytes_are_refused(tmp_path):
    path = tmp_path / "a.zarr"
    write(path, np.zeros((3, SIDE, SIDE), np.uint8), 3, "zstd")
    facts = json.loads((path / "0" / "zarr.json").read_text())
    (path / "0" / "zarr.json").write_text(json.dumps(facts | {"more": "x" * 2**26}))
    with pytest.raises(UnreadableSlideError, match="bytes, at most"):
        open_slide(path)

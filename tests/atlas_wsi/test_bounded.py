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


def declare(path, name, change):
    """Change what an array says of its codecs."""
    facts = json.loads((path / "0" / name).read_text())
    (path / "0" / name).write_text(json.dumps(facts | change))


FILTERS = {
    "adler32": {},
    "crc32": {},
    "crc32c": {},
    "fletcher32": {},
    "jenkins_lookup3": {"initval": 0, "prefix": None},
    "astype": {"encode_dtype": "<f8", "decode_dtype": "|u1"},
    "bitround": {"keepbits": 10},
    "delta": {"dtype": "|u1", "astype": "|i2"},
    "fixedscaleoffset": {"dtype": "<f4", "astype": "|u1", "scale": 10, "offset": 0},
    "quantize": {"dtype": "<f4", "digits": 1},
    "shuffle": {"elementsize": 4},
}


@pytest.mark.parametrize("name", FILTERS)
def test_every_filter_gives_back_the_pixels(tmp_path, name):
    is_real = name in {"bitround", "fixedscaleoffset", "quantize"}
    pixels = (
        np.random.default_rng(0).integers(0, 9, (3, SIDE, SIDE)).astype("f4" if is_real else "u1")
    )
    chunk = numcodecs.get_codec({"id": name} | FILTERS[name]).encode(pixels.ravel())
    write(tmp_path / "a.zarr", pixels, 2, "zlib")
    declare(tmp_path / "a.zarr", ".zarray", {"filters": [{"id": name} | FILTERS[name]]})
    first_chunk(tmp_path / "a.zarr").write_bytes(zlib.compress(bytes(memoryview(chunk).cast("B"))))
    with open_slide(tmp_path / "a.zarr", scale=(0, 9)) as slide:
        found = slide.read_region(0, 0, SIDE, SIDE)
    assert np.array_equal(found, pixels.transpose(1, 2, 0))


WIDE = {"id": "astype", "encode_dtype": "|u1", "decode_dtype": "<f8"}


@pytest.mark.parametrize("compressor", [None, {"id": "zlib"}])
@pytest.mark.parametrize("filters", [[WIDE] * 3, [{"id": "packbits"}] * 3])
def test_filters_of_a_chunk_do_not_multiply(tmp_path, filters, compressor):
    """Three filters made 4 GiB of 8 MiB of zeros."""
    path = tmp_path / "a.zarr"
    write(path, np.full((3, SIDE, SIDE), 7, np.uint8), 2, "zlib")
    declare(path, ".zarray", {"filters": filters, "compressor": compressor})
    first_chunk(path).write_bytes(zlib.compress(bytes(2**23)) if compressor else bytes(2**23))
    with open_slide(path, strict=True) as slide, pytest.raises(UnreadableSlideError, match=MORE):
        slide.read_region(0, 0, 8, 8)


V3_CODEC = {
    "name": "numcodecs.astype",
    "configuration": {"encode_dtype": "|u1", "decode_dtype": "U9"},
}
SHARDS = {
    "name": "sharding_indexed",
    "configuration": {"chunk_shape": [1, 1, 1], "codecs": ["bytes"]},
}


@pytest.mark.parametrize(
    ("version", "change", "message"),
    [
        (2, {"compressor": {"id": "pickle"}}, "pickle is not read"),
        (2, {"filters": [{"id": "json2"}]}, "json2 is not read"),
        (2, {"filters": [WIDE | {"decode_dtype": "<U1000"}]}, "no number"),
        (2, {"filters": [{"id": "delta", "dtype": "|u1", "astype": "<c16"}] * 3}, "between"),
        (2, {"chunks": 64}, "make no sense"),
        (3, {"codecs": ["vlen-bytes"]}, "vlen-bytes is not read"),
        (3, {"codecs": {"bytes": 0, "zstd": 0}}, "expected a list"),
        (3, {"codecs": [V3_CODEC, "bytes"]}, "no number"),
        (
            3,
            {"codecs": [SHARDS | {"configuration": {"codecs": [SHARDS]}}]},
            "sharding_indexed is not",
        ),
    ],
)
def test_codecs_without_a_bound_are_refused_by_name(tmp_path, version, change, message):
    write(tmp_path / "a.zarr", np.zeros((3, 2048, 2048), np.uint8), version, "zstd")
    if message == "between":
        change = change | {"chunks": [3, 2048, 2048]}
    declare(tmp_path / "a.zarr", ".zarray" if version == 2 else "zarr.json", change)
    with pytest.raises(UnreadableSlideError, match=message):
        open_slide(tmp_path / "a.zarr")

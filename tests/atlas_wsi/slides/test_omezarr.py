from __future__ import annotations

import http.server
import itertools
import json
import pickle
import shutil
import threading
from functools import partial

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atlas_wsi.errors import SlideError, UnreadableSlideError, UnsupportedFormatError
from atlas_wsi.grid import Box
from atlas_wsi.slides.formats.omezarr import open_omezarr
from atlas_wsi.slides.open import open_slide
from atlas_wsi.slides.synthetic_scenes import make_ome_zarr

VERSIONS = ("0.4", "0.5")
SHARED_FOLDER = [HealthCheck.function_scoped_fixture]  # every example writes its file anew


def noise(rows, cols, channels=3, dtype="uint8"):
    rng = np.random.default_rng(7)
    return (rng.random((rows, cols, channels)) * 250).astype(dtype)


def read_all(backend, level=0):
    rows, cols = backend.meta.levels[level].shape
    return backend.read_block(level, Box(row=0, col=0, rows=rows, cols=cols))


def edit(path, change):
    """Change the OME part of the root's attributes in place."""
    group = zarr.open_group(path, mode="r+")
    attributes = group.attrs.asdict()
    change(attributes.get("ome", attributes))
    group.attrs.put(attributes)


# What is stored is what is read -------------------------------------------------------------


@settings(max_examples=30, suppress_health_check=SHARED_FOLDER)
@given(data=st.data())
def test_any_shape_in_any_order_of_axes_comes_back(tmp_path, data):
    shape = data.draw(st.tuples(st.integers(1, 70), st.integers(1, 70), st.integers(1, 4)))
    orders = ["".join(order) for order in itertools.permutations("cyx")]
    axes = data.draw(st.sampled_from([*orders, "tczyx", "zyxc", "tyxc"]))
    dtype = data.draw(st.sampled_from(["uint8", "uint16", "int16", "float32", ">u2"]))
    version = data.draw(st.sampled_from(VERSIONS))
    pixels = noise(*shape, dtype=dtype)
    path = tmp_path / "image.zarr"
    make_ome_zarr(path, pixels, version=version, axes=axes, chunk=32)
    backend = open_omezarr(path)
    found = read_all(backend)
    np.testing.assert_array_equal(found, pixels)
    assert found.dtype == np.dtype(dtype).newbyteorder("=") == np.dtype(backend.meta.dtype)
    box = Box(row=shape[0] // 3, col=shape[1] // 2, rows=1, cols=shape[1] - shape[1] // 2)
    np.testing.assert_array_equal(backend.read_block(0, box), pixels[box.slices])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("suffix", ["", ".zip"])
def test_folders_and_zip_files_are_slides(tmp_path, version, suffix):
    pixels = noise(300, 500)
    path = tmp_path / f"image.zarr{suffix}"
    make_ome_zarr(path, pixels, version=version, mpp=(0.25, 0.5), chunk=64)
    with pickle.loads(pickle.dumps(open_slide(path))) as slide:
        assert slide.name == "image"
        assert slide.meta.format == f"ome-zarr {version}"
        assert (slide.shape, slide.n_channels, slide.dtype) == ((300, 500), 3, np.uint8)
        assert slide.mpp == (0.25, 0.5)
        assert slide.downsamples == ((1, 1), (2, 2), (4, 4))
        assert slide.meta.channel_names == ("red", "green", "blue")
        assert slide.background == (255, 255, 255)
        region = slide.read_region(-10, 490, 20, 20)
        assert (region[:10] == 255).all()
        assert (region[:, 10:] == 255).all()
        np.testing.assert_array_equal(region[10:, :10], pixels[:10, 490:])
        np.testing.assert_array_equal(slide.levels[0].compute(), pixels)


def test_a_zip_file_may_hold_the_folder_itself(tmp_path):
    make_ome_zarr(tmp_path / "in" / "image.zarr", noise(40, 50))
    shutil.make_archive(str(tmp_path / "image"), "zip", tmp_path / "in")
    with open_slide(tmp_path / "image.zip") as slide:
        assert slide.shape == (40, 50)


def test_many_lazy_chunks_at_once_do_not_wait_for_each_other(tmp_path):
    """Decoding a chunk of a zarr slide needs threads of zarr, which asks for the chunk."""
    pixels = noise(5000, 5000, 1)
    make_ome_zarr(tmp_path / "image.zarr", pixels, levels=1, chunk=512)
    with open_slide(tmp_path / "image.zarr") as slide:
        lazy = slide.levels[0].compute(scheduler="threads", num_workers=32)
    np.testing.assert_array_equal(lazy, pixels)


@pytest.fixture
def server(tmp_path):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    httpd = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))
    )
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.mark.parametrize("version", VERSIONS)
def test_an_image_on_a_web_server_is_read_in_parts(tmp_path, server, version):
    pixels = noise(200, 150)
    make_ome_zarr(tmp_path / "image.zarr", pixels, version=version, chunk=64)
    with open_slide(f"{server}/image.zarr") as slide:
        assert slide.name == "image"
        np.testing.assert_array_equal(slide.read_region(50, 40, 90, 100), pixels[50:140, 40:140])
    with pytest.raises(UnsupportedFormatError, match="holds no OME-Zarr"):
        open_slide(f"{server}/nothing.zarr")


# What the metadata means --------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("value", "unit", "micrometers"),
    [
        (0.5, "micrometer", 0.5),
        (250.0, "nanometer", 0.25),
        (0.002, "millimeter", 2.0),
        (10.0, "meter", 1e7),
    ],
)
def test_units_become_micrometers(tmp_path, version, value, unit, micrometers):
    make_ome_zarr(tmp_path / "a.zarr", noise(8, 8), mpp=value, unit=unit, version=version)
    meta = open_omezarr(tmp_path / "a.zarr").meta
    assert meta.mpp == pytest.approx((micrometers, micrometers))
    assert meta.mpp_source == "OME-Zarr scale"


def test_a_scale_without_a_unit_is_no_resolution(tmp_path):
    make_ome_zarr(tmp_path / "a.zarr", noise(8, 8), mpp=None)
    assert open_omezarr(tmp_path / "a.zarr").meta.mpp is None


@pytest.mark.parametrize("scale", [[1, -1, 2], [1, 0, 0], [1, float("nan"), 1], [1, 1]])
def test_an_impossible_scale_is_ignored_and_told(tmp_path, scale):
    make_ome_zarr(tmp_path / "a.zarr", noise(8, 8))

    def spoil(ome):
        ome["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]["scale"] = scale

    edit(tmp_path / "a.zarr", spoil)
    meta = open_omezarr(tmp_path / "a.zarr").meta
    assert meta.mpp is None
    assert len(meta.warnings) == 1


def test_the_scale_of_the_whole_image_multiplies_that_of_a_level(tmp_path):
    make_ome_zarr(tmp_path / "a.zarr", noise(8, 8), mpp=0.5)

    def add(ome):
        step = {"type": "scale", "scale": [1, 3, 2]}
        ome["multiscales"][0]["coordinateTransformations"] = [step]

    edit(tmp_path / "a.zarr", add)
    assert open_omezarr(tmp_path / "a.zarr").meta.mpp == (1.5, 1.0)


def test_fluorescence_channels_keep_their_names_and_a_black_background(tmp_path):
    channels = [("DAPI", "0000FF"), ("Ki67", "00FF00"), ("CD3", "FF0000")]
    make_ome_zarr(tmp_path / "a.zarr", noise(8, 8), channels=channels)
    meta = open_omezarr(tmp_path / "a.zarr").meta
    assert meta.channel_names == ("DAPI", "Ki67", "CD3")
    assert meta.background == (0, 0, 0)
    assert "colorinterp" not in meta.properties


def test_three_channels_colored_red_green_blue_are_one_photograph(tmp_path):
    channels = [("0", "FF0000"), ("1", "00FF00"), ("2", "0000FF")]
    make_ome_zarr(tmp_path / "a.zarr", noise(8, 8, dtype="uint16"), channels=channels)
    meta = open_omezarr(tmp_path / "a.zarr").meta
    assert meta.channel_names == ("red", "green", "blue")
    assert meta.background == (65535, 65535, 65535)


def test_of_a_stack_the_first_plane_is_read_and_told(tmp_path):
    stack = np.arange(2 * 3 * 4 * 5, dtype=np.uint16).reshape(2, 3, 4, 5)
    group = zarr.create_group(tmp_path / "a.zarr")
    array = group.create_array("0", data=stack, chunks=(1, 1, 4, 5), dimension_names=list("tzyx"))
    assert array.shape == stack.shape
    axes = [{"name": "t", "type": "time"}, *({"name": n, "type": "space"} for n in "zyx")]
    image = {"axes": axes, "datasets": [{"path": "0"}]}
    group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}
    backend = open_omezarr(tmp_path / "a.zarr")
    np.testing.assert_array_equal(read_all(backend)[..., 0], stack[0, 0])
    assert [w.split(" the")[0] for w in backend.meta.warnings] == [
        "Of 2 positions along t",
        "Of 3 positions along z",
    ]


def test_pixels_that_are_no_numbers_are_not_valid(tmp_path):
    pixels = noise(4, 4, dtype="float32")
    pixels[1, 2, 0] = np.nan
    make_ome_zarr(tmp_path / "a.zarr", pixels, levels=1)
    with open_slide(tmp_path / "a.zarr") as slide:
        valid = slide.read_valid(0, 0, 4, 4)
    assert np.argwhere(~valid).tolist() == [[1, 2]]


def test_of_a_bioformats2raw_collection_the_first_image_is_read(tmp_path):
    root = zarr.create_group(tmp_path / "c.zarr", zarr_format=2)
    root.attrs["bioformats2raw.layout"] = 3
    pixels = noise(30, 40)
    make_ome_zarr(tmp_path / "c.zarr" / "0", pixels, version="0.4")
    make_ome_zarr(tmp_path / "c.zarr" / "1", noise(10, 10), version="0.4")
    np.testing.assert_array_equal(read_all(open_omezarr(tmp_path / "c.zarr")), pixels)


# What is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attributes", "hint"),
    [
        ({"plate": {"wells": [{"path": "B/03"}]}}, "/B/03/0"),
        ({"well": {"images": [{"path": "4"}]}}, "/4"),
        ({}, ""),
        ({"multiscales": []}, ""),
        ({"multiscales": [{"version": "0.2", "datasets": [{"path": "0"}]}]}, "converter"),
        ({"version": "0.6", "multiscales": [{"datasets": [{"path": "0"}]}]}, "converter"),
    ],
)
def test_what_is_no_single_image_is_refused_with_a_way_out(tmp_path, attributes, hint):
    group = zarr.create_group(tmp_path / "a.zarr")
    group.attrs["ome"] = attributes
    with pytest.raises(UnsupportedFormatError) as caught:
        open_omezarr(tmp_path / "a.zarr")
    assert hint in caught.value.hint


@pytest.mark.parametrize("path", ["../secret", "/etc", "a/../../b", "a\\b", "file://x", ""])
def test_a_path_that_leaves_the_store_is_refused(tmp_path, path):
    make_ome_zarr(tmp_path / "secret", noise(8, 8))
    make_ome_zarr(tmp_path / "a.zarr", noise(8, 8))
    edit(tmp_path / "a.zarr", lambda o: o["multiscales"][0]["datasets"][0].update(path=path))
    with pytest.raises(UnreadableSlideError, match=r"datasets\.0\.path"):
        open_omezarr(tmp_path / "a.zarr")


def test_a_plain_zarr_array_is_no_slide(tmp_path):
    zarr.create_array(tmp_path / "a.zarr", shape=(4, 4), dtype="uint8")
    with pytest.raises(SlideError):
        open_omezarr(tmp_path / "a.zarr")


def test_a_zip_file_of_something_else_is_no_slide(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("text")
    shutil.make_archive(str(tmp_path / "a"), "zip", tmp_path / "in")
    with pytest.raises(UnsupportedFormatError, match="without a zarr group"):
        open_slide(tmp_path / "a.zip")


def test_chunks_that_would_fill_the_memory_are_refused(tmp_path):
    make_ome_zarr(tmp_path / "a.zarr", noise(8, 8, 1), axes="yx", levels=1)
    path = tmp_path / "a.zarr" / "0" / "zarr.json"
    array = json.loads(path.read_text())
    array["shape"] = [2**30, 2**30]
    array["chunk_grid"]["configuration"]["chunk_shape"] = [2**20, 2**20]
    path.write_text(json.dumps(array))
    with pytest.raises(UnsupportedFormatError, match="chunks"):
        open_omezarr(tmp_path / "a.zarr")


@pytest.mark.parametrize("shape", [[0, 8], [8, 2**40]])
def test_a_shape_that_no_image_has_is_refused(tmp_path, shape):
    make_ome_zarr(tmp_path / "a.zarr", noise(8, 8, 1), axes="yx", levels=1)
    path = tmp_path / "a.zarr" / "0" / "zarr.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"shape": shape}))
    with pytest.raises(UnreadableSlideError, match="shape"):
        open_omezarr(tmp_path / "a.zarr")


def test_a_missing_coarse_level_is_told_and_a_missing_finest_one_is_an_error(tmp_path):
    pixels = noise(64, 64)
    make_ome_zarr(tmp_path / "a.zarr", pixels, levels=3)
    shutil.rmtree(tmp_path / "a.zarr" / "1")
    meta = open_omezarr(tmp_path / "a.zarr").meta
    assert [level.shape for level in meta.levels] == [(64, 64), (16, 16)]
    assert "'1' is missing" in meta.warnings[0]
    shutil.rmtree(tmp_path / "a.zarr" / "0")
    with pytest.raises(UnreadableSlideError, match="'0'"):
        open_omezarr(tmp_path / "a.zarr")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_damaged_chunk_spoils_no_other(tmp_path, version):
    pixels = noise(1024, 256)
    path = tmp_path / "a.zarr"
    make_ome_zarr(path, pixels, version=version, axes="yxc", levels=1, chunk=256)
    chunk = path / "0" / ("c/1/0/0" if version == "0.5" else "1/0/0")
    chunk.write_bytes(b"\x00" * 40)
    with open_slide(path) as slide:
        found = slide.read_region(0, 0, 1024, 256)
        assert [hole.box.row for hole in slide.unreadable] == [256]
    keep = np.r_[0:256, 512:1024]
    np.testing.assert_array_equal(found[keep], pixels[keep])
    assert (found[256:512] == 255).all()
    with open_slide(path, strict=True) as slide, pytest.raises(UnreadableSlideError):
        slide.read_region(0, 0, 1024, 256)


# Metadata from outside ----------------------------------------------------------------------

odd = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["../0", "0", "scale", "y", "blosc", "uint8", "0.4", "0.5"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)


def places(value, at=()):
    """List where in a JSON document something stands."""
    yield at
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*at, key))


@settings(max_examples=150, suppress_health_check=SHARED_FOLDER)
@given(data=st.data())
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("what", ["group", "array"])
def test_odd_metadata_is_an_error_of_ours_or_an_image(tmp_path, version, what, data):
    path = tmp_path / "a.zarr"
    if not path.exists():
        make_ome_zarr(path, noise(40, 30), version=version, channels=[("a", "ff0000")] * 3)
        shutil.copytree(path, tmp_path / "sound")
    names = {
        ("group", "0.4"): ".zattrs",
        ("group", "0.5"): "zarr.json",
        ("array", "0.4"): "0/.zarray",
        ("array", "0.5"): "0/zarr.json",
    }
    name = names[what, version]
    document = json.loads((tmp_path / "sound" / name).read_text())
    for _ in range(data.draw(st.integers(1, 2))):
        *parents, last = data.draw(st.sampled_from([at for at in places(document) if at]))
        holder = document
        for key in parents:
            holder = holder[key]
        if data.draw(st.booleans()):
            holder[last] = data.draw(odd)
        else:
            del holder[last]
    (path / name).write_text(json.dumps(document))
    try:
        with open_slide(path) as slide:
            pixels = slide.read_region(0, 0, 8, 8)
            assert pixels.shape == (8, 8, slide.n_channels)
            assert slide.mpp is None or min(slide.mpp) > 0
    except SlideError:
        return

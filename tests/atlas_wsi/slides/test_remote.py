"""Slides on a real S3 server: read in parts, equal to the file on disk, clear when they fail."""

from __future__ import annotations

import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import s3fs
from typer.testing import CliRunner

import atlas_wsi
from atlas_wsi.cli.app import app
from atlas_wsi.errors import UnreachableSlideError, UnreadableSlideError, UnsupportedFormatError
from atlas_wsi.slides.synthetic import make_svs
from atlas_wsi.slides.synthetic_scenes import make_ome_zarr, make_scene


@pytest.fixture(scope="module")
def svs(tmp_path_factory):
    path = tmp_path_factory.mktemp("remote") / "slide.svs"
    make_svs(path, shape=(4000, 5000), mpp=0.5, tissue=0.7, seed=5)
    return path


@pytest.fixture
def remote(s3, svs):
    url = s3.put(svs)
    s3.sent()
    return url


def make_any(kind, folder):
    path = folder / {"svs": "a.svs", "cog": "b.tif", "zarr": "c.ome.zarr"}[kind]
    if kind == "svs":
        make_svs(path, shape=(1200, 1500), mpp=0.5)
    elif kind == "cog":
        make_scene(path, shape=(1200, 1500), driver="COG")
    else:
        pixels = np.random.default_rng(0).integers(0, 255, (700, 900, 3), np.uint8)
        make_ome_zarr(path, pixels)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["svs", "cog", "zarr"])
def test_a_slide_on_a_server_is_the_slide_on_disk(s3, tmp_path, kind):
    path = make_any(kind, tmp_path)
    with atlas_wsi.open_slide(path) as local, atlas_wsi.open_slide(s3.put(path)) as far:
        assert far.shape == local.shape
        assert far.level_shapes == local.level_shapes
        assert far.mpp == local.mpp
        assert (far.crs, far.transform) == (local.crs, local.transform)
        assert far.name == local.name
        for level in range(len(local.levels)):
            ours, theirs = far.levels[level].compute(), local.levels[level].compute()
            np.testing.assert_array_equal(ours, theirs)
        assert far.vendor == local.vendor
        assert far.magnification == local.magnification


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["svs", "cog"])
def test_a_look_at_a_large_file_fetches_little_of_it(s3, tmp_path, kind):
    path = tmp_path / "large.tif"
    if kind == "cog":
        make_scene(path, shape=(4000, 4000), driver="COG", period_px=512)
    else:
        path = tmp_path / "large.svs"
        make_svs(path, shape=(6000, 8000), tissue=0.9)
    url = s3.put(path)
    s3.sent()
    with atlas_wsi.open_slide(url) as far:
        pixels = far.read_region(1000, 2000, 256, 256)
    with atlas_wsi.open_slide(path) as local:
        np.testing.assert_array_equal(pixels, local.read_region(1000, 2000, 256, 256))
    (sent,) = s3.sent().values()
    assert 0 < sent < path.stat().st_size / 4


def test_a_web_address_reads_the_same(s3, remote, svs):
    with atlas_wsi.open_slide(s3.web(remote)) as far, atlas_wsi.open_slide(svs) as local:
        np.testing.assert_array_equal(far.thumbnail(), local.thumbnail())


def test_blocks_are_fetched_once_for_all_threads(s3, remote, svs):
    with atlas_wsi.open_slide(remote) as far, atlas_wsi.open_slide(svs) as local:
        boxes = [(y, x, 300, 300) for y in range(0, 3600, 300) for x in range(0, 4500, 300)]
        with ThreadPoolExecutor(8) as threads:
            found = list(threads.map(lambda box: far.read_region(*box), boxes))
        for box, pixels in zip(boxes, found, strict=True):
            np.testing.assert_array_equal(pixels, local.read_region(*box))
    (sent,) = s3.sent().values()
    assert sent < 1.3 * svs.stat().st_size


@pytest.mark.slow
def test_a_prediction_from_a_server_is_that_from_disk(s3, remote, svs, tmp_path):
    options = {"precision": "float32", "memory": "500MB"}
    far = atlas_wsi.predict(remote, "atlas_test", **options)
    local = atlas_wsi.predict(svs, "atlas_test", **options)
    np.testing.assert_allclose(far.probabilities, local.probabilities, atol=1e-6)
    assert far.slide.path == remote


@pytest.mark.slow
def test_the_command_line_takes_addresses(s3, remote, tmp_path):
    info = CliRunner().invoke(app, ["info", remote, "--json"])
    assert json.loads(info.stdout)["levels"][0]["shape"] == [4000, 5000]
    command = ["predict", remote, "--out", str(tmp_path), "--model", "atlas_test", "--quiet"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert atlas_wsi.open_result(tmp_path / "slide").slide.path == remote


def test_a_slide_crosses_to_another_process_by_its_address(remote):
    with atlas_wsi.open_slide(remote) as far:
        other = pickle.loads(pickle.dumps(far))
        np.testing.assert_array_equal(other.thumbnail(), far.thumbnail())
        other.close()


def test_a_busy_server_is_asked_again(s3, remote, svs):
    with atlas_wsi.open_slide(remote) as far, atlas_wsi.open_slide(svs) as local:
        s3.fail(2)
        np.testing.assert_array_equal(
            far.read_region(3000, 3000, 200, 200), local.read_region(3000, 3000, 200, 200)
        )


@pytest.mark.slow
def test_an_outage_leaves_no_holes_in_a_scene(s3, tmp_path):
    """The reader of TIFF tells an outage and a damaged tile in the same words."""
    path = tmp_path / "outage.tif"
    make_scene(path, shape=(2000, 2000), driver="COG", period_px=512)
    with atlas_wsi.open_slide(s3.put(path)) as far, atlas_wsi.open_slide(path) as local:
        s3.fail(1000)
        with pytest.raises(UnreachableSlideError):
            far.read_region(1200, 1200, 100, 100)
        s3.fail(0)
        assert far.unreadable == []
        np.testing.assert_array_equal(
            far.read_region(1200, 1200, 100, 100), local.read_region(1200, 1200, 100, 100)
        )


def test_what_is_not_there_is_told(s3):
    with pytest.raises(UnreadableSlideError, match="does not exist"):
        atlas_wsi.open_slide("s3://bucket/none.svs")
    with pytest.raises(UnreadableSlideError, match="does not exist"):
        atlas_wsi.open_slide("s3://no-such-bucket/none.svs")


def test_missing_credentials_are_told_with_what_to_set(s3, remote, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(UnreachableSlideError) as told:
        atlas_wsi.open_slide(remote)
    assert "AWS_ACCESS_KEY_ID" in told.value.hint


def test_a_server_that_is_down_is_told(s3, remote, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(UnreachableSlideError, match="cannot be read from its server"):
        atlas_wsi.open_slide(remote)


@pytest.mark.parametrize("kind", ["svs", "cog"])
def test_a_truncated_object_is_refused_or_read_as_far_as_it_goes(s3, tmp_path, kind):
    path = make_any(kind, tmp_path)
    data = path.read_bytes()
    url = s3.put(path)
    with atlas_wsi.open_slide(url) as whole:
        shape = whole.shape
        pixels = whole.read_region(0, 0, 64, 64)
    cut = path.with_name(f"cut{path.suffix}")
    cut.write_bytes(data[: len(data) * 9 // 10])
    url = s3.put(cut)
    with pytest.raises(UnreadableSlideError, match=r"is truncated: .* bytes of .* are missing"):
        atlas_wsi.open_slide(url)
    if kind == "svs":  # its directories lie at the end
        return
    with atlas_wsi.open_slide(url, allow_truncated=True) as rest:
        np.testing.assert_array_equal(rest.read_region(0, 0, 64, 64), pixels)
        rest.read_region(0, 0, *shape)
        assert rest.unreadable


def test_what_only_a_disk_serves_is_refused_with_a_way_out(s3, tmp_path):
    path = tmp_path / "slide.ome.zarr.zip"
    make_ome_zarr(path, np.zeros((300, 300, 3), np.uint8))
    with pytest.raises(UnsupportedFormatError) as told:
        atlas_wsi.open_slide(s3.put(path))
    assert "Copy the file to a disk first" in told.value.hint

from __future__ import annotations

import math
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, Resampling
from rasterio.transform import Affine, from_origin

from atlas_wsi.errors import SlideError, UnreadableSlideError, UnsupportedFormatError
from atlas_wsi.grid import Box
from atlas_wsi.slides.formats.raster import open_raster
from atlas_wsi.slides.open import open_slide
from atlas_wsi.slides.synthetic_scenes import make_scene
from atlas_wsi.slides.tile_reader import NO_DATA, OBSERVED, UNREADABLE


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("scenes")


@pytest.fixture(scope="module")
def cog(folder):
    path = folder / "cog.tif"
    make_scene(path, (700, 900), bands=4, dtype="uint16", nodata=0, driver="COG")
    return path


def write(path, pixels, *, crs="EPSG:32633", transform=None, **profile):
    """Write `(bands, rows, cols)` as GeoTIFF."""
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=pixels.shape[0],
        height=pixels.shape[1],
        width=pixels.shape[2],
        dtype=pixels.dtype,
        crs=crs,
        transform=transform or from_origin(500_000, 5_200_000, 10, 10),
        **profile,
    ) as dataset:
        dataset.write(pixels)
    return path


def whole(level):
    return Box(row=0, col=0, rows=level.shape[0], cols=level.shape[1])


@st.composite
def boxes(draw, shape):
    row, col = (draw(st.integers(0, n - 1)) for n in shape)
    rows, cols = (draw(st.integers(1, n - at)) for n, at in zip(shape, (row, col), strict=True))
    return Box(row=row, col=col, rows=rows, cols=cols)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(data=st.data())
def test_a_block_of_any_level_is_what_rasterio_reads(cog, data):
    backend = open_raster(cog)
    level = data.draw(st.integers(0, len(backend.meta.levels) - 1))
    box = data.draw(boxes(backend.meta.levels[level].shape))
    options = {"overview_level": level - 1} if level else {}
    with rasterio.open(cog, **options) as dataset:
        window = rasterio.windows.Window(box.col, box.row, box.cols, box.rows)
        pixels, valid = dataset.read(window=window), dataset.dataset_mask(window=window) > 0
    np.testing.assert_array_equal(backend.read_block(level, box), pixels.transpose(1, 2, 0))
    np.testing.assert_array_equal(backend.read_valid(level, box), valid)
    backend.close()


def test_levels_are_the_file_and_its_overviews(cog):
    levels = open_raster(cog).meta.levels
    assert [level.shape for level in levels] == [(700, 900), (350, 450), (175, 225)]
    assert [level.downsample for level in levels] == [(1, 1), (2, 2), (4, 4)]
    assert levels[0].tile == (256, 256)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("driver", ["GTiff", "COG"])
def test_samples_keep_their_type_and_place(tmp_path, dtype, driver):
    make_scene(tmp_path / "scene.tif", (300, 280), bands=6, dtype=dtype, driver=driver)
    with open_slide(tmp_path / "scene.tif") as slide:
        assert (slide.dtype.name, slide.n_channels, slide.shape) == (dtype, 6, (300, 280))
        assert slide.meta.channel_names == ("red", "green", "blue", "nir", "swir1", "swir2")
        assert slide.meta.properties["colorinterp"].startswith("red,green,blue")
        assert slide.is_georeferenced
        assert slide.transform == (10, 0, 500_000, 0, -10, 5_200_000)
        assert rasterio.CRS.from_wkt(slide.crs) == rasterio.CRS.from_epsg(32633)
        with rasterio.open(tmp_path / "scene.tif") as dataset:
            np.testing.assert_array_equal(
                slide.read_region(0, 0, 300, 280), dataset.read().transpose(1, 2, 0)
            )


def test_strips_are_joined_and_huge_blocks_cut(tmp_path):
    pixels = np.zeros((1, 40, 9000), np.uint8)
    path = write(tmp_path / "wide.tif", pixels, blockysize=1)
    assert open_raster(path).meta.levels[0].tile == (40, 1024)


def test_bands_are_found_by_what_they_are_called(tmp_path):
    path = write(tmp_path / "s2.tif", np.zeros((5, 8, 8), np.uint16))
    with rasterio.open(path, "r+") as dataset:
        dataset.descriptions = ("B01", "B02", "B03", "B04", None)
    meta = open_raster(path).meta
    assert meta.channel_names == ("B01", "B02", "B03", "B04", "band 5")
    assert meta.properties["colorinterp"].split(",")[1:4] == ["blue", "green", "red"]


# What is valid ------------------------------------------------------------------------------


def test_a_pixel_is_missing_if_all_its_bands_are_nodata(tmp_path):
    pixels = np.zeros((3, 1, 3), np.uint8)
    pixels[:, 0, 1] = (0, 0, 7)  # black water
    pixels[:, 0, 2] = 9
    meta_path = write(tmp_path / "nodata.tif", pixels, nodata=0)
    backend = open_raster(meta_path)
    assert backend.meta.has_mask
    assert backend.meta.nodata == 0
    assert backend.read_valid(0, whole(backend.meta.levels[0])).tolist() == [[False, True, True]]


@pytest.mark.parametrize("nodata", [None, math.nan, -9999.0])
def test_a_pixel_without_a_number_is_never_valid(tmp_path, nodata):
    pixels = np.ones((2, 1, 4), np.float32)
    pixels[:, 0, 0] = np.nan
    pixels[1, 0, 1] = np.nan
    pixels[0, 0, 2] = np.inf
    backend = open_raster(write(tmp_path / "nan.tif", pixels, nodata=nodata))
    valid = backend.read_valid(0, whole(backend.meta.levels[0]))
    assert valid.tolist() == [[False, False, False, True]]


def test_missing_pixels_do_not_bleed_into_coarser_ones(tmp_path):
    pixels = np.full((1, 512, 512), 100, np.float32)
    pixels[0, :, 256:] = np.nan
    path = write(tmp_path / "half.tif", pixels, nodata=math.nan, tiled=True)
    with open_slide(path) as slide:
        small = slide.read_region(0, 0, 100, 100, mpp=51.2e6)
        valid = slide.read_valid(0, 0, 100, 100, mpp=51.2e6)
    assert valid[:, :50].all()
    assert not valid[:, 50:].any()
    np.testing.assert_allclose(small[:, :50], 100, rtol=1e-6)


def test_coarse_levels_of_a_sparse_scene_are_those_of_the_same_scene_stored_whole(tmp_path):
    rng = np.random.default_rng(0)
    pixels = np.zeros((3, 4500, 2301), np.uint8)
    for row, col in ((700, 0), (2_040, 1_500), (4_300, 2_101)):
        pixels[:, row : row + 200, col : col + 200] = rng.integers(0, 3, (3, 200, 200)) * 100
    found = []
    for sparse in (True, False):
        path = write(tmp_path / f"{sparse}.tif", pixels, nodata=0, tiled=True, sparse_ok=sparse)
        with open_slide(path) as slide:
            seen = [slide.read_masked(0, 0, 4500 // n, 2301 // n, mpp=n * 1e7) for n in (2, 8)]
            found.append([slide.thumbnail(300), *(array for pair in seen for array in pair)])
    assert (tmp_path / "True.tif").stat().st_size < (tmp_path / "False.tif").stat().st_size / 2
    assert found[0][0].any()
    for sparse, whole_file in zip(*found, strict=True):
        np.testing.assert_array_equal(sparse, whole_file)


def test_alpha_tells_what_is_valid_and_is_no_band(tmp_path):
    pixels = np.full((4, 2, 2), 50, np.uint8)
    pixels[3] = [[255, 0], [128, 255]]
    path = write(tmp_path / "rgba.tif", pixels, photometric="rgb", alpha="yes")
    backend = open_raster(path)
    box = whole(backend.meta.levels[0])
    assert backend.meta.channel_names == ("red", "green", "blue")
    assert backend.read_block(0, box).shape == (2, 2, 3)
    assert backend.read_valid(0, box).tolist() == [[True, False], [True, True]]


def test_a_mask_band_holds_for_overviews_too(tmp_path):
    path = tmp_path / "mask.tif"
    mask = np.zeros((512, 512), bool)
    mask[:, :200] = True
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(
            path,
            "w",
            driver="GTiff",
            width=512,
            height=512,
            count=1,
            dtype="uint8",
            tiled=True,
            crs="EPSG:32633",
            transform=from_origin(0, 0, 1, 1),
        ) as dataset,
    ):
        dataset.write(np.full((1, 512, 512), 3, np.uint8))
        dataset.write_mask(mask)
        dataset.build_overviews([2], Resampling.nearest)
    backend = open_raster(path)
    for level in (0, 1):
        valid = backend.read_valid(level, whole(backend.meta.levels[level]))
        assert valid[:, : 200 >> level].all()
        assert not valid[:, 200 >> level :].any()


# How large a pixel is -----------------------------------------------------------------------


def mpp_of(path, crs, transform, shape=(10, 20)):
    write(path, np.zeros((1, *shape), np.uint8), crs=crs, transform=transform)
    return open_raster(path).meta


def test_a_projected_pixel_has_its_nominal_size(tmp_path):
    meta = mpp_of(tmp_path / "a.tif", "EPSG:32633", from_origin(3e5, 5e6, 10, 20))
    assert meta.mpp == (20e6, 10e6)
    assert meta.mpp_source == "geotransform"
    assert not meta.warnings


def test_feet_become_meters(tmp_path):
    meta = mpp_of(tmp_path / "a.tif", "EPSG:2263", from_origin(1e6, 2e5, 3, 3))
    assert meta.mpp == pytest.approx((3 * 0.3048006096e6,) * 2)


def test_a_turned_pixel_has_the_length_of_its_sides(tmp_path):
    turned = Affine(3.0, -8.0, 5e5, 4.0, 6.0, 5e6)  # columns 5 m, rows 10 m
    meta = mpp_of(tmp_path / "a.tif", "EPSG:32633", turned)
    assert meta.mpp == pytest.approx((10e6, 5e6))


@pytest.mark.parametrize("latitude", [-70.0, 0.0, 47.0])
@pytest.mark.parametrize("longitude", [15.0, 179.9995])
def test_degrees_become_meters_on_the_ellipsoid(tmp_path, latitude, longitude):
    step = 1e-4
    corner = from_origin(longitude - 10 * step, latitude + 5 * step, step, step)
    meta = mpp_of(tmp_path / "a.tif", "EPSG:4326", corner)
    a, e2 = 6_378_137.0, 0.00669437999014
    sine = math.sin(math.radians(latitude))
    meridian = a * (1 - e2) / (1 - e2 * sine**2) ** 1.5
    parallel = a / math.sqrt(1 - e2 * sine**2) * math.cos(math.radians(latitude))
    expected = (meridian * math.radians(step) * 1e6, parallel * math.radians(step) * 1e6)
    assert meta.mpp == pytest.approx(expected, rel=1e-6)


def test_web_mercator_is_undone(tmp_path):
    x, y = 1.6e6, 8_399_737.89  # 60 degrees north, where it stretches by two
    meta = mpp_of(tmp_path / "a.tif", "EPSG:3857", from_origin(x, y, 20, 20))
    assert meta.mpp == pytest.approx((10e6, 10e6), rel=0.01)
    assert "stretches" in meta.warnings[0]


def test_a_scene_of_many_degrees_says_that_its_pixels_differ(tmp_path):
    meta = mpp_of(tmp_path / "a.tif", "EPSG:4326", from_origin(0, 70, 0.5, 0.5), (100, 20))
    assert any("UTM" in warning for warning in meta.warnings)


def test_ground_control_points_place_a_scene(tmp_path):
    points = [
        GroundControlPoint(row=r, col=c, x=5e5 + 30 * c, y=5e6 - 30 * r)
        for r, c in ((0, 0), (0, 200), (100, 0), (100, 200))
    ]
    path = tmp_path / "gcps.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=200, height=100, count=1, dtype="uint8"
    ) as dataset:
        dataset.gcps = (points, rasterio.CRS.from_epsg(32633))
    with open_slide(path) as slide:
        assert slide.mpp == pytest.approx((30e6, 30e6))
        assert slide.transform == pytest.approx((30, 0, 5e5, 0, -30, 5e6))
        assert slide.mpp_source == "ground control points"
        assert "4 ground control points" in slide.meta.warnings[0]


@pytest.mark.parametrize(("unit", "mpp"), [("metre", 10e6), ("foot", 3.048e6)])
def test_a_local_crs_gives_the_size_of_a_pixel_and_no_place_on_earth(tmp_path, unit, mpp):
    meters = {"metre": 1, "foot": 0.3048}[unit]
    crs = CRS.from_wkt(f'LOCAL_CS["building site",UNIT["{unit}",{meters}]]')
    meta = mpp_of(tmp_path / "a.tif", crs, from_origin(0, 0, 10, 10))
    assert meta.mpp == pytest.approx((mpp, mpp))
    assert meta.transform == (10, 0, 0, 0, -10, 0)


def test_a_raster_without_a_crs_has_no_place_and_no_size(tmp_path):
    meta = mpp_of(tmp_path / "a.tif", None, from_origin(0, 0, 10, 10))
    assert (meta.mpp, meta.crs, meta.transform) == (None, None, None)
    assert "no CRS" in meta.warnings[0]


# Other formats, and what is none ------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "driver"), [(".vrt", "VRT"), (".jp2", "JP2OpenJPEG")])
def test_other_formats_of_gdal_open(tmp_path, suffix, driver):
    make_scene(tmp_path / "scene.tif", (300, 280))
    path = tmp_path / f"scene{suffix}"
    options = {"QUALITY": "100", "REVERSIBLE": "YES"} if driver.startswith("JP2") else {}
    rasterio.shutil.copy(str(tmp_path / "scene.tif"), str(path), driver=driver, **options)
    with open_slide(path) as slide, open_slide(tmp_path / "scene.tif") as original:
        assert slide.mpp == (10e6, 10e6)
        assert slide.meta.format == driver.lower()
        np.testing.assert_array_equal(
            slide.read_region(0, 0, 300, 280), original.read_region(0, 0, 300, 280)
        )


def test_numbers_of_a_color_table_are_kept_and_told(tmp_path):
    path = write(tmp_path / "classes.tif", np.array([[[0, 1, 2]]], np.uint8))
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = [ColorInterp.palette]
        dataset.write_colormap(1, {1: (255, 0, 0, 255), 2: (0, 255, 0, 255)})
    backend = open_raster(path)
    assert backend.read_block(0, whole(backend.meta.levels[0])).ravel().tolist() == [0, 1, 2]
    assert "color table" in backend.meta.warnings[0]


def test_what_gdal_does_not_know_is_refused(tmp_path):
    (tmp_path / "notes.tif").write_text("no raster at all")
    with pytest.raises(UnsupportedFormatError):
        open_raster(tmp_path / "notes.tif")


def test_plain_images_are_left_to_their_own_reader(tmp_path):
    Image.new("RGB", (20, 10)).save(tmp_path / "plain.png")
    with pytest.raises(UnsupportedFormatError, match="plain image"):
        open_raster(tmp_path / "plain.png")
    with open_slide(tmp_path / "plain.png") as slide:
        assert slide.meta.backend == "image"


def test_complex_samples_are_refused(tmp_path):
    path = write(tmp_path / "radar.tif", np.zeros((1, 4, 4), np.complex64))
    with pytest.raises(UnsupportedFormatError, match="complex64"):
        open_raster(path)


def test_a_vrt_whose_source_is_gone_is_unreadable_there(tmp_path):
    make_scene(tmp_path / "source.tif", (300, 280))
    rasterio.shutil.copy(str(tmp_path / "source.tif"), str(tmp_path / "v.vrt"), driver="VRT")
    (tmp_path / "source.tif").unlink()
    backend = open_raster(tmp_path / "v.vrt")
    with pytest.raises(UnreadableSlideError, match="rows 0 to 256"):
        backend.read_block(0, Box(row=0, col=0, rows=256, cols=256))


def test_text_in_another_encoding_is_no_reason_to_refuse_a_scene(tmp_path):
    path = write(tmp_path / "old.tif", np.ones((1, 4, 4), np.uint8))
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(TIFFTAG_COPYRIGHT="Generaldirektion fAr Vermessung")
    path.write_bytes(path.read_bytes().replace(b"fAr", b"f\xfcr"))
    with open_slide(path) as slide:
        assert slide.mpp == (10e6, 10e6)


@pytest.fixture(scope="module")
def small(folder):
    path = folder / "small.tif"
    make_scene(path, (280, 300), nodata=0)
    return path.read_bytes()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # rasterio's log
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(data=st.data())
def test_a_damaged_header_is_an_error_of_ours_or_a_scene(tmp_path, small, data):
    changes = data.draw(st.dictionaries(st.integers(0, 1200), st.integers(0, 255), max_size=3))
    content = bytearray(small[: data.draw(st.integers(1, len(small)))])
    for at, value in changes.items():
        content[min(at, len(content) - 1)] = value
    path = tmp_path / "scene.tif"
    path.write_bytes(content)
    try:
        open_slide(path).close()
        backend = open_raster(path)
        rows, cols = backend.meta.levels[-1].shape
        box = Box(row=0, col=0, rows=min(rows, 64), cols=min(cols, 64))
        assert backend.read_block(len(backend.meta.levels) - 1, box).shape[:2] == (
            box.rows,
            box.cols,
        )
        backend.close()
    except SlideError:
        return


def test_a_damaged_block_spoils_no_other(tmp_path):
    path = tmp_path / "scene.tif"
    make_scene(path, (512, 512), overviews=False)
    with open_slide(path) as sound:
        expected = sound.read_region(0, 0, 512, 512)
    with rasterio.open(path) as dataset:
        offset = int(dataset.get_tag_item("BLOCK_OFFSET_1_1", "TIFF", bidx=1))
        size = int(dataset.get_tag_item("BLOCK_SIZE_1_1", "TIFF", bidx=1))
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * size)
    with open_slide(path) as slide:
        found = slide.read_region(0, 0, 512, 512)
        assert [(hole.box.row, hole.box.col) for hole in slide.unreadable] == [(256, 256)]
        valid = slide.read_valid(0, 0, 512, 512)
    np.testing.assert_array_equal(found[:256], expected[:256])
    np.testing.assert_array_equal(found[:, :256], expected[:, :256])
    assert not found[256:, 256:].any()
    assert valid[:256].all()
    assert not valid[256:, 256:].any()
    with open_slide(path, strict=True) as slide, pytest.raises(UnreadableSlideError):
        slide.read_region(0, 0, 512, 512)


@pytest.mark.parametrize("nodata", [None, 7])
@pytest.mark.parametrize("interleave", ["pixel", "band"])
def test_a_damaged_strip_loses_its_own_rows_only(tmp_path, interleave, nodata):
    path = tmp_path / "strips.tif"
    pixels = np.random.default_rng(0).integers(100, 2000, (4, 120, 90)).astype(np.int16)
    pixels[:, 70] = 7
    write(path, pixels, blockysize=10, compress="deflate", interleave=interleave, nodata=nodata)
    with rasterio.open(path) as dataset:
        offset = int(dataset.get_tag_item("BLOCK_OFFSET_0_3", "TIFF", bidx=2))
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * 20)
    with open_slide(path) as slide:
        early = slide.read_valid(0, 0, 120, 90)
        found, state = slide.read_masked(0, 0, 120, 90, channels=(0, 1, 2, 3))
        assert [hole.box for hole in slide.unreadable] == [Box(row=30, col=0, rows=10, cols=90)]
        valid = slide.read_valid(0, 0, 120, 90)
    expected = np.zeros((120, 90), np.uint8)
    expected[30:40] = UNREADABLE
    expected[70] = NO_DATA if nodata else OBSERVED
    np.testing.assert_array_equal(state, expected)
    np.testing.assert_array_equal(valid, expected == OBSERVED)
    if nodata:
        np.testing.assert_array_equal(early, valid)
    kept = np.arange(120) // 10 != 3
    np.testing.assert_array_equal(found[kept], pixels.transpose(1, 2, 0)[kept])
    with open_slide(path, strict=True) as slide, pytest.raises(UnreadableSlideError):
        slide.read_region(0, 0, 120, 90)


_SERVER = """
import http.server, os, re, sys

class Parts(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        path = self.translate_path(self.path)
        asked = re.match(r"bytes=(\\d+)-(\\d+)", self.headers.get("Range", ""))
        if not asked or not os.path.isfile(path):
            return super().do_GET()
        size = os.path.getsize(path)
        start, last = int(asked[1]), min(int(asked[2]), size - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{last}/{size}")
        self.send_header("Content-Length", str(last + 1 - start))
        self.end_headers()
        with open(path, "rb") as file:
            file.seek(start)
            self.wfile.write(file.read(last + 1 - start))

os.chdir(sys.argv[1])
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Parts)
print(server.server_port, flush=True)
server.serve_forever()
"""


@pytest.fixture
def server(cog):
    """Serve parts of files; another process, because GDAL holds the GIL while it opens."""
    (cog.parent / "cog").write_bytes(cog.read_bytes())
    command = [sys.executable, "-c", _SERVER, str(cog.parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        process.terminate()


def test_a_cog_on_a_web_server_is_read_in_parts(cog, server):
    with open_slide(f"{server}/cog.tif?token=a") as slide, open_slide(cog) as local:
        assert slide.name == "cog"
        assert slide.mpp == local.mpp
        np.testing.assert_array_equal(
            slide.read_region(300, 200, 90, 80), local.read_region(300, 200, 90, 80)
        )
    with open_slide(f"{server}/cog") as slide:
        assert slide.meta.backend == "raster"
    for name in ("nothing.tif", "nothing"):
        with pytest.raises(UnreadableSlideError, match="does not exist"):
            open_slide(f"{server}/{name}")


# As a slide ---------------------------------------------------------------------------------


def test_threads_read_what_one_reads(cog):
    backend = open_raster(cog)
    jobs = [
        (level, Box(row=r, col=c, rows=60, cols=60))
        for level in range(2)
        for r in range(0, 280, 40)
        for c in range(0, 380, 40)
    ]
    alone = [backend.read_block(*job) for job in jobs]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda job: backend.read_block(*job), jobs * 3))
    for index, block in enumerate(together):
        np.testing.assert_array_equal(block, alone[index % len(jobs)])
    backend.close()


def test_outside_the_scene_is_nodata(cog):
    with pickle.loads(pickle.dumps(open_slide(cog))) as slide:
        assert slide.background == (0, 0, 0, 0)
        region = slide.read_region(-50, -50, 100, 100)
        assert not region[:50].any()
        assert not slide.read_valid(-50, -50, 100, 100)[:, :50].any()
        np.testing.assert_array_equal(region[50:, 50:], slide.read_region(0, 0, 50, 50))

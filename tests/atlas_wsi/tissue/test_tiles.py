"""Tissue from the tiles of other programs, in files as those programs write them."""

from __future__ import annotations

import geopandas
import h5py
import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

import atlas_wsi
from atlas_wsi.cli.app import app
from atlas_wsi.errors import DatasetError
from atlas_wsi.slides.synthetic import make_svs
from atlas_wsi.tissue.areas import read_tissue

# an L of three tiles of 256 level-0 pixels, and one that overlaps
CORNERS = np.array([[512, 256], [768, 256], [512, 512], [576, 512]])
SIDE = 256


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiles") / "a.svs"
    make_svs(path, shape=(1800, 2400), mpp=0.5, tissue=0.7, seed=2)
    return path


@pytest.fixture(scope="module")
def slide(path):
    with atlas_wsi.open_slide(path) as slide:
        yield slide


def clam(path, slide, **attrs):
    """Patches as create_patches_fp.py writes them: int64 coords with chunks that may grow."""
    with h5py.File(path, "w") as file:
        coords = file.create_dataset(
            "coords", data=CORNERS, maxshape=(None, 2), chunks=(1, 2), dtype=np.int64
        )
        size = np.array(slide.shape[::-1])
        coords.attrs["patch_size"] = SIDE
        coords.attrs["patch_level"] = 0
        coords.attrs["downsample"] = (1.0, 1.0)
        coords.attrs["downsampled_level_dim"] = tuple(size)
        coords.attrs["level_dim"] = size
        coords.attrs["name"] = "a"
        coords.attrs["save_path"] = "/data/patches"
        coords.attrs.update(attrs)


def trident(path, slide, *, features=False, **attrs):
    with h5py.File(path, "w") as file:
        if features:
            data = file.create_dataset("features", data=np.zeros((4, 8), np.float32))
            data.attrs.update(name="a", savetodir="/job", encoder="uni_v1")
        coords = file.create_dataset("coords", data=CORNERS.astype(np.int64))
        coords.attrs.update(
            patch_size=128,
            patch_size_level0=SIDE,
            level0_magnification=20,
            target_magnification=10,
            overlap=0,
            name="a",
            savetodir="/job",
            level0_width=slide.shape[1],
            level0_height=slide.shape[0],
        )
        for name, value in attrs.items():
            if value is None:
                del coords.attrs[name]
            else:
                coords.attrs[name] = value


def wsinfer(path, slide):
    with h5py.File(path, "w") as file:
        coords = file.create_dataset("/coords", data=CORNERS, compression="gzip")
        coords.attrs.update(patch_size=SIDE, patch_level=0, patch_spacing_um_px=0.5)


def stamp(path, slide):
    with h5py.File(path, "w") as file:
        file["coords"] = CORNERS * 0.5
        file["feats"] = np.zeros((4, 8), np.float16)
        file.attrs.update(
            stamp_version="2.4.0",
            extractor="uni",
            unit="um",
            tile_size_um=128.0,
            tile_size_px=224,
            code_hash="ab",
            feat_type="tile",
        )


def expected(mask):
    """The union of the tiles on the cells of a mask."""
    union = shapely.union_all(shapely.box(*CORNERS.T, *(CORNERS + SIDE).T))
    rows, cols = mask.mask.shape
    y, x = np.mgrid[:rows, :cols] + 0.5
    step_y, step_x = mask.grid.step_px
    return shapely.contains_xy(union, x * step_x, y * step_y)


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (clam, "CLAM"),
        (trident, "TRIDENT"),
        (lambda p, s: trident(p, s, features=True), "TRIDENT"),
        (lambda p, s: trident(p, s, patch_size_level0=None), "TRIDENT"),
        (lambda p, s: clam(p, s, patch_level=1, patch_size=64, downsample=(4.0, 4.0)), "CLAM"),
        (wsinfer, "WSInfer"),
        (stamp, "STAMP"),
    ],
    ids=["clam", "trident", "features", "no-level0-size", "clam-level-1", "wsinfer", "stamp"],
)
def test_the_mask_is_the_union_of_the_tiles(slide, tmp_path, write, says):
    write(tmp_path / "a.h5", slide)
    mask = read_tissue(tmp_path / "a.h5", slide)
    np.testing.assert_array_equal(mask.mask, expected(mask))
    assert says in mask.method
    assert mask.is_drawn


def test_a_prediction_covers_the_tiles_only(path, slide, tmp_path):
    clam(tmp_path / "a.h5", slide)
    arguments = ["predict", path, "-o", tmp_path, "--tissue", tmp_path / "a.h5"]
    done = CliRunner().invoke(app, [*map(str, arguments), "--model", "atlas_test"])
    assert done.exit_code == 0, done.output
    result = atlas_wsi.open_result(tmp_path / "a")
    known = result.argmax() >= 0
    tiles = result.tissue.coverage(result.grid) > 0
    assert known.any()
    assert (known <= tiles).all()


def test_tissue_shows_how_a_file_is_understood(path, slide, tmp_path):
    trident(tmp_path / "a.h5", slide)
    arguments = ["tissue", path, "-o", tmp_path / "m.png", "--tissue", tmp_path / "a.h5"]
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exit_code == 0, done.output
    assert "TRIDENT" in done.stdout
    with Image.open(tmp_path / "m.png") as picture:
        shown = np.asarray(picture) > 0
    np.testing.assert_array_equal(shown, read_tissue(tmp_path / "a.h5", slide).mask)


def test_tissue_of_trident_is_in_pixels_whatever_its_crs(slide, tmp_path):
    outline = shapely.box(400, 200, 1200, 1000) - shapely.box(600, 400, 700, 500)
    frame = geopandas.GeoDataFrame({"tissue_id": [0]}, geometry=[outline], crs="EPSG:3857")
    frame.to_file(tmp_path / "a.geojson", driver="GeoJSON")
    assert "3857" in (tmp_path / "a.geojson").read_text()
    mask = read_tissue(tmp_path / "a.geojson", slide)
    cell = mask.grid.step_px[0] * mask.grid.step_px[1]
    assert mask.mask.sum() * cell == pytest.approx(outline.area, rel=0.1)


def no_size(path, slide):
    with h5py.File(path, "w") as file:
        file["coords"], file["features"] = CORNERS, np.zeros((4, 8))


def other_keys(path, slide):
    with h5py.File(path, "w") as file:
        file["x"] = CORNERS


def far_away(path, slide):
    global_corners = CORNERS + 10**6
    with h5py.File(path, "w") as file:
        file["coords"] = global_corners
        file["coords"].attrs.update(patch_size=SIDE, patch_level=0)


def points(path, slide):
    with h5py.File(path, "w") as file:
        file["coords"] = np.zeros((4, 3))
        file["coords"].attrs.update(patch_size=SIDE, patch_level=0)


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (no_size, "size of its tiles"),
        (other_keys, "no tiles of"),
        (far_away, "touches"),
        (points, "expected numbers"),
        (lambda p, s: clam(p, s, patch_size=-3), "patch_size"),
        (lambda p, s: clam(p, s, patch_size="big"), "patch_size"),
        (lambda p, s: clam(p, s, level_dim=(10, 10)), "made from a slide"),
        (lambda p, s: trident(p, s, level0_width=10), "made from a slide"),
        (lambda p, s: p.write_bytes(b"no"), "not readable HDF5"),
    ],
    ids=[
        "no-size",
        "keys",
        "far",
        "points",
        "negative",
        "text",
        "clam-size",
        "trident-size",
        "text-file",
    ],
)
def test_what_is_no_tiles_of_the_slide_is_refused(slide, tmp_path, write, says):
    write(tmp_path / "a.h5", slide)
    with pytest.raises(DatasetError, match=says):
        read_tissue(tmp_path / "a.h5", slide)


@given(st.data())
def test_a_damaged_file_gives_tiles_or_a_reason(slide, tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damaged") / "a.h5"
    clam(path, slide)
    content = bytearray(path.read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=8)):
        content[at] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        mask = read_tissue(path, slide)
    except DatasetError:
        return
    assert mask.mask.any()

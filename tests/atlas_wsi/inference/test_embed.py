"""Features of tiles: where they lie, what they are, and the layouts of other tools."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from atlas_wsi import embed, load_model, open_slide, tissue_mask
from atlas_wsi.cli.app import app
from atlas_wsi.slides.synthetic import make_svs


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    path = tmp_path_factory.mktemp("slides") / "tissue.svs"
    make_svs(path, shape=(1500, 2100), mpp=0.5, tissue=0.5)
    return path


def run(*arguments):
    return CliRunner().invoke(app, ["embed", *map(str, arguments), "--model", "atlas_test"])


def test_a_tiles_features_are_those_of_its_pixels(slide):
    model = load_model("atlas_test")
    with open_slide(slide) as opened:
        found = embed(opened, model, tissue=tissue_mask(opened), tile_px=64)
        alone = embed(opened, model, tissue=tissue_mask(opened), tile_px=64, batch_size=1)
        shape = opened.shape
    assert found.tile_px_level0 == 128  # made for 1 um, the slide has 0.5
    assert (found.coords % 128 == 0).all()
    assert (found.coords + 128 <= shape[::-1]).all()
    assert len({tuple(c) for c in found.coords.tolist()}) == len(found.values)
    np.testing.assert_allclose(found.values, alone.values, atol=1e-5)


@pytest.mark.parametrize("flavor", ["trident", "clam", "stamp"])
def test_each_layout_has_the_keys_its_tool_reads(slide, tmp_path, flavor):
    path = tmp_path / "features.h5"
    done = run(slide, "-o", path, "--h5-flavor", flavor, "--tile-px", 64)
    assert done.exit_code == 0, done.output
    with h5py.File(path) as file:
        assert set(file) == ({"feats", "coords"} if flavor == "stamp" else {"features", "coords"})
        n = len(file["coords"])
        assert n > 0
        if flavor == "stamp":
            assert file["feats"].dtype == np.float16
            assert file.attrs["unit"] == "um"
            assert file.attrs["tile_size_um"] == 64
            assert (file["coords"][:] % 64 == 0).all()  # um
            return
        assert file["features"].shape == (n, 16)
        assert file["features"].dtype == np.float32
        attrs = dict(file["coords"].attrs)
        if flavor == "clam":
            assert (attrs["patch_size"], attrs["patch_level"]) == (128, 0)
        else:
            assert (attrs["patch_size"], attrs["patch_size_level0"]) == (64, 128)
            assert (attrs["level0_magnification"], attrs["target_magnification"]) == (20, 10)


def test_a_file_that_is_there_is_kept(slide, tmp_path):
    path = tmp_path / "features.h5"
    path.write_text("mine")
    done = run(slide, "-o", path, "--tile-px", 64)
    assert done.exit_code == 2
    assert path.read_text() == "mine"


def test_a_slide_without_enough_tissue_says_so(slide, tmp_path):
    done = run(slide, "-o", tmp_path, "--tile-px", 512, "--min-tissue", 1)
    assert done.exit_code == 2
    assert "no tile" in done.stderr
    assert not list(tmp_path.iterdir())


def test_half_precision_gives_about_the_same_features(slide):
    exact = embed(slide, "atlas_test", tile_px=64)
    rough = embed(slide, "atlas_test", tile_px=64, device="cpu", precision="bfloat16")
    assert rough.values.dtype == np.float32
    np.testing.assert_array_equal(rough.coords, exact.coords)
    assert (rough.values != exact.values).any()
    np.testing.assert_allclose(rough.values, exact.values, atol=0.1)

"""What is said before a map misleads."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile
import torch

import atlas_wsi
from atlas_wsi import CardSpec, Recipe, TissueMask, TrainOptions, predict, predict_to_folder
from atlas_wsi.grid import Grid
from atlas_wsi.models import Model
from tests.atlas_wsi.training.conftest import CLASSES, draw, make_tiles

SIDE = 768


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = make_tiles(tmp_path_factory.mktemp("tiles") / "tiles", side=128, n=30)
    path = tmp_path_factory.mktemp("model") / "textures.safetensors"
    atlas_wsi.train(
        atlas_wsi.read_tile_folder(folder, mpp=1.0),
        CardSpec(name="textures", domain="slide", mpp=1.0),
        Recipe(epochs=2, dim=32, depths=(1,), n_scales=2),
        TrainOptions(out=path, test_fraction=0.25, dtype="float16"),
    )
    return path


def write_slide(path, pixels):
    tifffile.imwrite(
        path,
        pixels,
        tile=(256, 256),
        photometric="rgb",
        resolution=(1e4, 1e4),
        resolutionunit="CENTIMETER",
    )
    return path


@pytest.fixture(scope="module")
def familiar_slide(tmp_path_factory):
    rng = np.random.default_rng(1)
    rows = [
        np.hstack([draw(rng.choice(CLASSES), rng, 128) for _ in range(SIDE // 128)])
        for _ in range(SIDE // 128)
    ]
    return write_slide(tmp_path_factory.mktemp("slide") / "textures.tif", np.vstack(rows))


@pytest.fixture(scope="module")
def strange_slide(tmp_path_factory):
    rng = np.random.default_rng(2)
    blocks = rng.choice(np.array([0, 255], np.uint8), (SIDE // 32, SIDE // 32, 3))
    pixels = blocks.repeat(32, axis=0).repeat(32, axis=1)
    return write_slide(tmp_path_factory.mktemp("slide") / "blocks.tif", pixels)


def everywhere():
    return TissueMask(
        mask=np.ones((48, 48), bool), grid=Grid(shape=(48, 48), step_px=(16, 16)), method="all"
    )


def test_images_like_those_of_the_training_are_familiar(trained, familiar_slide):
    run = predict(familiar_slide, trained, tissue=everywhere()).run
    assert run.familiarity > 0.7
    assert not any("is like the images" in warning for warning in run.warnings)


def test_images_unlike_those_of_the_training_are_warned_of(strange_slide):
    run = predict(strange_slide, "lung-he", tissue=everywhere()).run
    assert run.familiarity < 0.2
    assert any("is like the images" in warning for warning in run.warnings)


def test_familiarity_does_not_depend_on_how_a_slide_is_cut(trained, familiar_slide, tmp_path):
    whole = predict(familiar_slide, trained, tissue=everywhere(), precision="float32")
    parts = predict(
        familiar_slide,
        trained,
        tissue=everywhere(),
        precision="float32",
        memory=24 << 20,
        batch_size=1,
        work=tmp_path / "work",
    )
    assert parts.run.parameters["macro_side"] < whole.run.parameters["macro_side"]
    assert parts.run.familiarity == pytest.approx(whole.run.familiarity, abs=0.01)


def test_result_and_page_show_the_familiarity(strange_slide, tmp_path):
    done = predict_to_folder(strange_slide, tmp_path, model="lung-he", tissue=everywhere())
    summary = json.loads((done.folder / "summary.json").read_text())
    assert summary["run"]["familiarity"] == done.heatmap.run.familiarity
    page = atlas_wsi.export_result(done.folder, tmp_path / "page.html", to="html").path.read_text()
    assert "Familiarity" in page


def test_files_keep_every_digit(trained, tmp_path):
    model = Model.load(trained)
    again = Model.load(model.save(tmp_path / "copy.safetensors", dtype=torch.float16))
    assert again.card == model.card
    assert model.card.familiar.measured_on == "test"
    for name, value in model.familiarity.named_buffers():
        assert torch.equal(again.familiarity.get_buffer(name), value)
        assert value.dtype == torch.float32
        assert torch.equal(model.to(torch.bfloat16).familiarity.get_buffer(name), value)


def test_a_map_of_one_certain_class_is_warned_of(trained, familiar_slide):
    model = Model.load(trained)
    model.card = model.card.model_copy(update={"temperature": 0.001})
    with torch.no_grad():
        model.head.reads[0].bias[1] += 100
    warnings = predict(familiar_slide, model, tissue=everywhere()).run.warnings
    assert any(f"of the map is {CLASSES[1]}" in warning for warning in warnings)


def test_tissue_on_glass_is_warned_of(trained, tmp_path):
    rng = np.random.default_rng(3)
    glass = np.clip(240 + rng.normal(0, 1, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
    path = write_slide(tmp_path / "glass.tif", glass)
    warnings = predict(path, trained, tissue=everywhere()).run.warnings
    assert any("looks like glass" in warning for warning in warnings)

"""Training on polygons: tiles come from the inside of the right class, slides stay whole."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import tifffile
import torch
from typer.testing import CliRunner

from atlas_wsi.cli.app import app
from atlas_wsi.errors import DatasetError, MissingScaleError
from atlas_wsi.models.registry import load_model
from atlas_wsi.slides.open import open_slide
from atlas_wsi.streaming.token_store import StoredTokens
from atlas_wsi.streaming.working_image import open_working_image
from atlas_wsi.training.data.annotated_slide import draw_even, labeled_windows
from atlas_wsi.training.data.region_table import read_regions
from atlas_wsi.training.objectives import objective_for
from atlas_wsi.training.recipe import Recipe

SHADE = {"Stroma": 200, "Tumor": 90}
SIDE = 256


def feature(name: str, x: int, size: int = SIDE) -> dict:
    ring = [[x, 0], [x + size, 0], [x + size, size], [x, size], [x, 0]]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {
            "objectType": "annotation",
            "classification": {"name": name, "color": [200, 0, 0]},
        },
    }


@pytest.fixture
def table(tmp_path):
    """Four slides: the left half is tumor, the right half stroma."""
    rows = [("slide", "regions", "group")]
    rng = np.random.default_rng(0)
    for i in range(4):
        pixels = np.empty((SIDE, 2 * SIDE, 3))
        pixels[:, :SIDE], pixels[:, SIDE:] = SHADE["Tumor"], SHADE["Stroma"]
        pixels += rng.normal(0, 8, pixels.shape)
        tifffile.imwrite(
            tmp_path / f"{i}.tif",
            pixels.clip(0, 255).astype(np.uint8),
            photometric="rgb",
            tile=(256, 256),
            resolution=(10000, 10000),
            resolutionunit="CENTIMETER",
        )
        drawn = [feature("Tumor", 0), feature("Stroma", SIDE)]
        (tmp_path / f"{i}.geojson").write_text(
            json.dumps({"type": "FeatureCollection", "features": drawn})
        )
        rows.append((f"{i}.tif", f"{i}.geojson", f"patient-{i}"))
    path = tmp_path / "table.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def test_tiles_come_from_inside_the_polygons_of_their_class(table):
    tiles = read_regions(table, tile_px=64).prepared(mpp=1.0)
    assert tiles.classes == ("Stroma", "Tumor")
    assert set(tiles.groups) == {f"patient-{i}" for i in range(4)}
    for label, name in enumerate(tiles.classes):
        shade = np.median(tiles.images[tiles.labels == label], axis=(1, 2, 3))
        assert np.abs(shade - SHADE[name]).max() < 5


@pytest.mark.slow
def test_a_model_is_trained_and_measured_on_slides_it_did_not_see(table, tmp_path):
    out = tmp_path / "mine.safetensors"
    options = ("--work-mpp", "1", "--tile-px", "64", "--dim", "32", "--epochs", "30", "-q")
    options += ("--lr", "0.005", "--seed", "14")
    done = CliRunner().invoke(
        app, ["train", "regions", str(table), "-o", str(out), "--test-fraction", "0.25", *options]
    )
    assert done.exit_code == 0, done.output
    card = load_model(out).card
    assert card.class_names == ("Stroma", "Tumor")
    assert card.metrics["balanced_accuracy"] > 0.8
    assert out.with_suffix(".training.csv").is_file()
    assert not out.with_suffix(".resume.pt").exists()


@pytest.mark.slow
def test_slides_are_dealt_to_folds_as_a_whole(table, tmp_path):
    out = tmp_path / "mine.safetensors"
    options = ("--work-mpp", "1", "--tile-px", "64", "--dim", "32", "--epochs", "0.5", "-q")
    options += ("--megapixels", "0.2", "--seed", "14")
    done = CliRunner().invoke(
        app, ["train", "regions", str(table), "-o", str(out), "--folds", "2", *options]
    )
    assert done.exit_code == 0, done.output
    with out.with_suffix(".predictions.csv").open(newline="") as file:
        folds = {(row["group"], row["fold"]) for row in csv.DictReader(file)}
    assert sorted(group for group, _ in folds) == [f"patient-{i}" for i in range(4)]


@pytest.mark.slow
def test_slides_are_encoded_once_by_a_frozen_stem_and_kept_for_other_trainings(
    table, tmp_path, monkeypatch
):
    written = []
    write = StoredTokens.write
    monkeypatch.setattr(
        StoredTokens, "write", lambda own, *args: written.append(args) or write(own, *args)
    )
    kept = tmp_path / "kept"
    options = ("--work-mpp", "1", "--tile-px", "64", "--init", "tissue", "--freeze", "-q")
    options += ("--epochs", "3", "--test-fraction", "0.25", "--features", str(kept))
    curves = []
    for name in ("first", "second"):
        out = tmp_path / f"{name}.safetensors"
        done = CliRunner().invoke(app, ["train", "regions", str(table), "-o", str(out), *options])
        assert done.exit_code == 0, done.output
        curves.append(out.with_suffix(".training.csv").read_text())
        if name == "first":
            assert len(sorted(kept.rglob("tokens.bin"))) == 3  # one slide is for testing
            assert written
            written.clear()
    assert not written
    first, second = (
        np.loadtxt(curve.splitlines(), delimiter=",", skiprows=1, usecols=(0, 1, 2))
        for curve in curves
    )
    np.testing.assert_allclose(second, first, rtol=2e-2, atol=2e-3)  # tokens are float16
    trained, start = load_model(tmp_path / "first.safetensors"), load_model("tissue")
    for key, value in start.encoder.stem.state_dict().items():
        assert torch.equal(trained.encoder.stem.state_dict()[key], value), key


def test_tokens_of_a_stem_that_changes_cannot_be_kept(table, tmp_path):
    asked = ["train", "regions", str(table), "-o", str(tmp_path / "m.safetensors")]
    asked += ["--work-mpp", "1", "--features", str(tmp_path / "kept")]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 2
    assert "freeze it" in done.output


def test_labels_lie_on_the_tokens_of_their_area_mirrored_or_not(table):
    tiles = read_regions(table, tile_px=64).prepared(mpp=1.0)
    model = load_model("atlas_test")
    found = []
    with open_slide(tiles.slides[0].slide) as slide:
        image = open_working_image(slide, mpp=1.0)
        layout = model.encoder.plan(image.shape)
        for mirrored in ((False, False), (False, True)):
            labels = labeled_windows(
                tiles.slides[0], tiles.classes, image, layout, token_px=16, mirrored=mirrored
            )
            assert labels.windows.tolist() == [0, 1]
            found.append(labels.labels.reshape(2, 16, 16))
    tumor, stroma = (tiles.classes.index(name) for name in ("Tumor", "Stroma"))
    assert (found[0][0] == tumor).all()
    assert (found[0][1] == stroma).all()
    assert (found[1][0] == stroma).all()
    assert (found[1][1] == tumor).all()


@pytest.mark.parametrize(("megapixels", "steps"), [(0.1, 60), (0.2, 40), (9, 30)])
def test_a_step_shows_as_many_small_slides_as_fill_it(table, megapixels, steps):
    tiles = read_regions(table, tile_px=64).prepared(mpp=1.0)
    recipe = Recipe(epochs=30, megapixels=megapixels)  # a slide has one window of tissue
    assert objective_for(tiles, load_model("atlas_test"), recipe).steps == steps


def test_slides_of_a_rare_class_are_drawn_as_often_as_those_of_a_common_one():
    counts = np.array([[50, 0]] * 19 + [[0, 3]])
    rng = np.random.default_rng(0)
    is_rare = [draw_even(counts, 1, rng)[0] == 19 for _ in range(400)]
    assert 0.4 < np.mean(is_rare) < 0.6
    assert draw_even(counts, 30, rng).tolist() == list(range(20))


def test_polygons_without_a_class_are_refused(table):
    for path in table.parent.glob("*.geojson"):
        found = json.loads(path.read_text())
        for one in found["features"]:
            del one["properties"]["classification"]
        path.write_text(json.dumps(found))
    with pytest.raises(DatasetError, match="no area with a class"):
        read_regions(table).prepared(mpp=1.0)


def test_a_table_without_a_column_is_refused(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("slide\na.tif\n")
    with pytest.raises(DatasetError, match="lacks the column regions"):
        read_regions(path)


def test_samples_of_16_bit_are_read_as_predict_reads_them(table):
    eight = read_regions(table, tile_px=64).prepared(mpp=1.0)
    for path in table.parent.glob("?.tif"):
        pixels = tifffile.imread(path).astype(np.uint16) * 10 + 500
        tifffile.imwrite(
            path,
            pixels,
            photometric="rgb",
            tile=(256, 256),
            resolution=(10000, 10000),
            resolutionunit="CENTIMETER",
        )
    with pytest.raises(MissingScaleError, match="--scale"):
        read_regions(table, tile_px=64).prepared(mpp=1.0)
    sixteen = read_regions(table, tile_px=64, scale=(500, 3050)).prepared(mpp=1.0)
    np.testing.assert_array_equal(sixteen.images, eight.images)


def test_tiles_that_cannot_be_read_are_not_learned(table):
    whole = read_regions(table, tile_px=64).prepared(mpp=1.0)
    path = table.parent / "0.tif"
    pixels = tifffile.imread(path)
    tifffile.imwrite(
        path,
        pixels,
        photometric="rgb",
        tile=(256, 256),
        compression="jpeg",
        resolution=(10000, 10000),
        resolutionunit="CENTIMETER",
    )
    with tifffile.TiffFile(path) as file:
        start, size = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    damaged = bytearray(path.read_bytes())
    damaged[start : start + size] = bytes(size)
    path.write_bytes(damaged)
    left = read_regions(table, tile_px=64).prepared(mpp=1.0)
    gone = {"patient-0": "Tumor"}
    for group in set(whole.groups):
        for label, name in enumerate(whole.classes):
            before, after = (
                sum(g == group and k == label for g, k in zip(d.groups, d.labels, strict=True))
                for d in (whole, left)
            )
            assert after == (0 if gone.get(group) == name else before)

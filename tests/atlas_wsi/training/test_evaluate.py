"""Heatmaps and slide scores are measured against labels, whatever file holds these."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import tifffile
from rasterio.transform import from_origin
from typer.testing import CliRunner

from atlas_wsi import open_slide, predict
from atlas_wsi.cli.app import app
from atlas_wsi.errors import DatasetError
from atlas_wsi.grid import Grid
from atlas_wsi.models.registry import load_model
from atlas_wsi.training.data.labeled_areas import areas_by_class, read_names
from atlas_wsi.training.data.region_table import read_regions
from atlas_wsi.training.segmentation import cell_labels, measure_cells, predict_cells

STAIN = {"Stroma": (205, 120, 180), "Tumor": (110, 80, 170)}
SIDE = 256
UTM = "EPSG:32633"
CORNER = (5e5, 5.2e6)


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def half_and_half(seed):
    pixels = np.empty((SIDE, 2 * SIDE, 3))
    pixels[:, :SIDE], pixels[:, SIDE:] = STAIN["Tumor"], STAIN["Stroma"]
    pixels += np.random.default_rng(seed).normal(0, 8, pixels.shape)
    return pixels.clip(0, 255).astype(np.uint8)


def feature(name, x):
    ring = [[x, 0], [x + SIDE, 0], [x + SIDE, SIDE], [x, SIDE], [x, 0]]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"classification": {"name": name}},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six slides whose left half is tumor, and a model that was trained on some of them."""
    folder = tmp_path_factory.mktemp("regions")
    rows = [("slide", "regions", "group")]
    for i in range(6):
        tifffile.imwrite(
            folder / f"{i}.tif",
            half_and_half(i),
            photometric="rgb",
            tile=(256, 256),
            resolution=(10000, 10000),
            resolutionunit="CENTIMETER",
        )
        drawn = [feature("Tumor", 0), feature("Stroma", SIDE)]
        whole = {"type": "FeatureCollection", "features": drawn}
        (folder / f"{i}.geojson").write_text(json.dumps(whole))
        rows.append((f"{i}.tif", f"{i}.geojson", f"patient-{i}"))
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    done = run(
        *(
            "train",
            "regions",
            folder / "table.csv",
            "-o",
            folder / "m.safetensors",
            "--work-mpp",
            1,
        ),
        *("--tile-px", 128, "--dim", 32, "--epochs", 3, "--test-fraction", 0.34, "-q"),
        *("--megapixels", 0.2, "--seed", 14),
    )
    assert done.exit_code == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    path = tmp_path_factory.mktemp("scene") / "scene.tif"
    with rasterio.open(
        path, "w", driver="GTiff", height=SIDE, width=2 * SIDE, count=3, dtype="uint8",
        crs=UTM, transform=from_origin(*CORNER, 10, 10), tiled=True,
    ) as raster:  # fmt: skip
        raster.write(half_and_half(0).transpose(2, 0, 1))
    return path


@pytest.mark.slow
def test_held_out_slides_are_measured_cell_by_cell(folder, tmp_path):
    done = run(
        *("evaluate", "regions", folder / "table.csv", "--model", folder / "m.safetensors"),
        *("-o", tmp_path, "--json"),
    )
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)

    assert found["cells"] == 2 * (SIDE // 64) * (2 * SIDE // 64)  # of two of six slides
    assert found["metrics"]["mean_dice"] > 0.9
    assert found["metrics"]["dice Tumor"] > 0.9
    assert found["intervals_over"] == "groups"
    assert sum(map(sum, found["confusion"])) == found["cells"]
    low, high = found["intervals"]["auroc"][1:]
    assert low <= found["intervals"]["auroc"][0] <= high
    page = (tmp_path / "evaluation.html").read_text()
    assert "cells" in page
    assert page.count("<img") == 2


@pytest.mark.slow
def test_dice_is_what_counting_by_hand_gives(folder):
    model = load_model(folder / "m.safetensors")
    table = read_regions(folder / "table.csv")
    rows = table.rows[:1]
    cells = predict_cells(model, replace(table, rows=rows))
    with open_slide(rows[0].slide) as slide:
        said = predict(slide, model).argmax()
    tumor = model.card.class_names.index("Tumor")
    truth = np.arange(said.shape[1]) * 64 < SIDE
    both = ((said == tumor) & truth).sum()
    dice = 2 * both / ((said == tumor).sum() + truth.sum() * said.shape[0])

    assert measure_cells(model, cells).metrics["dice Tumor"] == pytest.approx(dice)
    assert len(np.unique(cells.groups)) > 1  # blocks, where all is of one patient


@pytest.mark.slow
def test_a_temperature_is_fitted_on_half_of_the_patients_and_stored(folder, tmp_path):
    model = load_model(folder / "m.safetensors")
    path = model.save(tmp_path / "copy.safetensors")
    done = run(
        *("evaluate", "regions", folder / "table.csv", "--model", path),
        *("--split", "all", "--fit-temperature", "--json"),
    )
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)

    assert found["cells"] == 3 * (SIDE // 64) * (2 * SIDE // 64)
    assert found["temperature"] == load_model(path).card.temperature != model.card.temperature


@pytest.mark.slow
def test_a_model_whose_card_does_not_tell_wants_split_all(folder):
    call = ("evaluate", "regions", folder / "table.csv", "--model", "atlas_test")
    done = run(*call, "--split", "test")

    assert done.exit_code == 2
    assert "--split all" in " ".join(done.stderr.split())


@pytest.mark.slow
def test_one_class_alone_has_no_ranking_and_is_no_fault(folder, tmp_path):
    whole = {"type": "FeatureCollection", "features": [feature("Tumor", 0)]}
    (tmp_path / "a.geojson").write_text(json.dumps(whole))
    (tmp_path / "table.csv").write_text(f"slide,regions\n{folder / '0.tif'},a.geojson\n")
    call = ("evaluate", "regions", tmp_path / "table.csv", "--model", folder / "m.safetensors")
    done = run(*call, "--split", "all", "--json", "-o", tmp_path)

    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["intervals"]["auroc"] == [None, None, None]
    assert json.loads(done.stdout)["intervals_over"] == "blocks of 4 x 4 cells"
    assert "over blocks of 4 x 4 cells" in (tmp_path / "evaluation.html").read_text()


def test_a_cell_is_of_the_class_that_covers_half_of_it():
    grid = Grid(shape=(1, 4), step_px=(64.0, 64.0))
    areas = {0: [shapely.box(0, 0, 100, 64)], 1: [shapely.box(150, 0, 256, 64)]}

    assert cell_labels(areas, grid).tolist() == [[0, 0, 1, 1]]
    assert cell_labels({1: [shapely.box(100, 0, 155, 64)]}, grid).tolist() == [[-1, -1, -1, -1]]


def on_the_map(x):
    left, top = CORNER
    return shapely.box(left + 10 * x, top - 10 * SIDE, left + 10 * (x + SIDE), top)


@pytest.mark.parametrize("suffix", ["gpkg", "shp", "fgb"])
@pytest.mark.parametrize("crs", [UTM, "EPSG:3857"])
def test_vector_files_are_brought_to_the_scene(scene, tmp_path, suffix, crs):
    table = geopandas.GeoDataFrame(
        {"cover": ["wood", "field", None]},
        geometry=[on_the_map(0), on_the_map(SIDE), on_the_map(0)],
        crs=UTM,
    ).to_crs(crs)
    path = tmp_path / f"areas.{suffix}"
    table.to_file(path)

    with open_slide(scene) as slide:
        found = areas_by_class(path, slide, column="cover")
        with pytest.raises(DatasetError, match="--column"):
            areas_by_class(path, slide)

    assert set(found) == {"wood", "field"}
    assert found["field"][0].symmetric_difference(shapely.box(SIDE, 0, 2 * SIDE, SIDE)).area < 100


def test_vector_files_without_a_place_are_refused(scene, tmp_path):
    far = geopandas.GeoDataFrame({"class": ["wood"]}, geometry=[shapely.box(0, 0, 9, 9)], crs=UTM)
    far.to_file(tmp_path / "far.gpkg")
    far.set_crs(None, allow_override=True).to_file(tmp_path / "nowhere.gpkg")
    (tmp_path / "none.gpkg").write_bytes(b"nothing")

    with open_slide(scene) as slide:
        for name, said in (("far", "touches"), ("nowhere", "reference system"), ("none", "cannot")):
            with pytest.raises(DatasetError, match=said):
                areas_by_class(tmp_path / f"{name}.gpkg", slide)


def write_labels(path, crs=UTM, dtype="uint8"):
    values = np.ones((SIDE // 8, SIDE // 4), dtype)
    values[:, SIDE // 8 :] = 2
    values[0] = 255
    with rasterio.open(
        path, "w", driver="GTiff", height=SIDE // 8, width=SIDE // 4, count=1, dtype=dtype,
        crs=crs, transform=from_origin(*CORNER, 80, 80), nodata=255,
    ) as raster:  # fmt: skip
        raster.write(values, 1)
    return path


def test_label_rasters_are_laid_over_the_scene(scene, tmp_path):
    path = write_labels(tmp_path / "labels.tif")
    (tmp_path / "names.csv").write_text("value,class\n1,wood\n")

    with open_slide(scene) as slide:
        by_value = areas_by_class(path, slide)
        named = areas_by_class(path, slide, names=read_names(tmp_path / "names.csv"))

    assert set(by_value) == {"1", "2"}
    assert sum(one.area for one in by_value["2"]) == pytest.approx(SIDE * (SIDE - 8))
    assert set(named) == {"wood"}


def test_label_rasters_that_cannot_be_placed_or_counted_are_refused(scene, tmp_path):
    with open_slide(scene) as slide:
        with pytest.raises(DatasetError, match="reference system"):
            areas_by_class(write_labels(tmp_path / "a.tif", crs=None), slide)
        with pytest.raises(DatasetError, match="whole numbers"):
            areas_by_class(write_labels(tmp_path / "b.tif", dtype="float32"), slide)
        path = write_labels(tmp_path / "c.tif")
        with pytest.raises(DatasetError, match="holds none of the values 7"):
            areas_by_class(path, slide, names={7: "ice"})
        far = write_labels(tmp_path / "e.tif", dtype="uint32")
        with rasterio.open(far, "r+") as raster:
            raster.write(np.full(raster.shape, 4_000_000_000, "uint32"), 1)
        with pytest.raises(DatasetError, match="beyond 32 bits"):
            areas_by_class(far, slide)
        (tmp_path / "d.tif").write_bytes(b"no raster")
        with pytest.raises(DatasetError, match="cannot be read"):
            areas_by_class(tmp_path / "d.tif", slide)
    for text in ("", "value,class\nx,wood\n", "value,class\n1,\n"):
        (tmp_path / "names.csv").write_text(text)
        with pytest.raises(DatasetError, match=r"names\.csv"):
            read_names(tmp_path / "names.csv")


@pytest.mark.slow
def test_a_scene_is_trained_on_and_measured_with_a_label_raster(scene, tmp_path):
    labels = write_labels(tmp_path / "labels.tif")
    (tmp_path / "names.csv").write_text("value,class\n1,wood\n2,field\n")
    rows = [("slide", "regions", "group")]
    rows += [(scene, labels, name) for name in ("west", "north", "south", "east")]
    with (tmp_path / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    more = ("--classes", tmp_path / "names.csv")
    model = tmp_path / "cover.safetensors"
    done = run(
        *("train", "regions", tmp_path / "table.csv", "-o", model, "--work-gsd", "10m", "--domain"),
        *("scene", "--dim", 32, "--epochs", 2, "-q", *more),
    )
    assert done.exit_code == 0, done.stderr
    done = run("evaluate", "regions", tmp_path / "table.csv", "--model", model, *more, "--json")
    assert done.exit_code == 0, done.stderr

    assert set(json.loads(done.stdout)["classes"]) == {"wood", "field"}
    assert json.loads(done.stdout)["metrics"]["mean_dice"] > 0.8


@pytest.mark.slow
def test_slide_scores_are_measured(folder, tmp_path):
    """Of the table's column split, and of all; the model's classes are those of the labels."""
    rows = [("slide", "label", "split")]
    kinds = ("Tumor", "Stroma")
    rows += [(folder / f"{i}.tif", kinds[i % 2], "train" if i < 2 else "test") for i in range(6)]
    with (tmp_path / "slides.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    call = ("evaluate", "slides", tmp_path / "slides.csv", "--model", folder / "m.safetensors")
    held = run(*call, "--json", "-o", tmp_path / "report")
    whole = run(*call, "--split", "all", "--json")
    assert held.exit_code == whole.exit_code == 0, held.stderr + whole.stderr

    assert json.loads(held.stdout)["slides"] == 4
    assert json.loads(whole.stdout)["slides"] == 6
    scores = [
        predict(open_slide(folder / f"{i}.tif"), load_model(folder / "m.safetensors")).scores
        for i in range(2, 6)
    ]
    right = [max(s, key=s.get) == kinds[i % 2] for i, s in enumerate(scores, start=2)]
    assert json.loads(held.stdout)["metrics"]["accuracy"] == pytest.approx(np.mean(right))
    assert "slides" in (tmp_path / "report" / "evaluation.html").read_text()

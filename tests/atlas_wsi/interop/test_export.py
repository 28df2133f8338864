"""Exports, opened as the programs open them that they are made for."""

from __future__ import annotations

import csv
import json
import shutil
import sys
import uuid
from dataclasses import replace

import h5py
import jsonschema
import numpy as np
import ome_zarr.io
import ome_zarr.reader
import pytest
import rasterio
import shapely
import spatialdata
from PIL import Image
from rio_cogeo.cogeo import cog_validate

import atlas_wsi
from atlas_wsi.errors import (
    CorruptResultError,
    OutputNotWritableError,
    ResultError,
    ResultExistsError,
    SlideError,
)
from atlas_wsi.grid import Grid
from atlas_wsi.interop.formats import EXPORT_FORMATS


def export(run, result, path, to, *more):
    done = run("export", result, "--to", to, "-o", path, *more)
    assert done.exit_code == 0, done.output
    return path


def painted(heatmap, winner):
    """The same slide with the classes of `winner`, -1 for none."""
    winner = np.asarray(winner)
    probabilities = np.where(np.arange(len(heatmap.classes))[:, None, None] == winner, 0.9, 0.05)
    probabilities = (probabilities / probabilities.sum(0)).astype(np.float32)
    probabilities[:, winner < 0] = np.nan
    step = tuple(n / m for n, m in zip(heatmap.slide.shape, winner.shape, strict=True))
    return replace(
        heatmap, probabilities=probabilities, grid=Grid(shape=winner.shape, step_px=step)
    )


# QuPath's rules: PathObjectTypeAdapters.java and GsonTools.java
RGB = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 255}}
QUPATH = {
    "type": "object",
    "required": ["type", "features"],
    "properties": {
        "type": {"const": "FeatureCollection"},
        "crs": False,
        "features": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["type", "id", "geometry", "properties"],
                "additionalProperties": False,
                "properties": {
                    "type": {"const": "Feature"},
                    "id": {"type": "string"},
                    "geometry": {"properties": {"type": {"enum": ["Polygon", "MultiPolygon"]}}},
                    "properties": {
                        "type": "object",
                        "required": ["objectType", "classification"],
                        "properties": {
                            "objectType": {"enum": ["annotation", "detection", "tile", "cell"]},
                            "classification": {
                                "type": "object",
                                "required": ["name", "color"],
                                "properties": {"name": {"type": "string"}, "color": RGB},
                            },
                            "measurements": {
                                "type": "object",
                                "additionalProperties": {"type": "number"},
                            },
                        },
                    },
                },
            },
        },
    },
}

# girder's rules: AnnotationSchema of girder_large_image_annotation; other keys are refused there
COLOR = {"type": "string", "pattern": r"^rgba\(\d+,\s*\d+,\s*\d+,\s*(\d?\.|)\d+\)$"}
POINT = {"type": "array", "items": {"type": "number"}, "minItems": 3, "maxItems": 3}
LABEL = {
    "type": "object",
    "required": ["value"],
    "additionalProperties": False,
    "properties": {"value": {"type": "string"}},
}
DSA = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["name", "elements"],
        "additionalProperties": False,
        "properties": {
            "name": {"type": "string", "minLength": 1},
            "description": {"type": "string"},
            "attributes": {"type": "object"},
            "elements": {
                "type": "array",
                "items": {
                    "oneOf": [
                        {
                            "type": "object",
                            "required": ["type", "points"],
                            "additionalProperties": False,
                            "properties": {
                                "type": {"const": "polyline"},
                                "points": {"type": "array", "items": POINT, "minItems": 2},
                                "closed": {"type": "boolean"},
                                "fillColor": COLOR,
                                "lineColor": COLOR,
                                "lineWidth": {"type": "number", "minimum": 0},
                                "group": {"type": "string"},
                                "label": LABEL,
                            },
                        },
                        {
                            "type": "object",
                            "required": ["type", "values", "gridWidth"],
                            "additionalProperties": False,
                            "properties": {
                                "type": {"const": "griddata"},
                                "origin": POINT,
                                "dx": {"type": "number"},
                                "dy": {"type": "number"},
                                "gridWidth": {"type": "integer", "minimum": 1},
                                "values": {"type": "array", "items": {"type": "number"}},
                                "interpretation": {"enum": ["heatmap", "contour", "choropleth"]},
                                "colorRange": {"type": "array", "items": COLOR},
                                "rangeValues": {"type": "array", "items": {"type": "number"}},
                                "normalizeRange": {"type": "boolean"},
                                "minColor": COLOR,
                                "maxColor": COLOR,
                                "group": {"type": "string"},
                                "label": LABEL,
                            },
                        },
                    ]
                },
            },
        },
    },
}


def strict_json(path):
    """JSON without NaN and Infinity, which neither Java nor JavaScript reads."""

    def refuse(name):
        raise AssertionError(f"{name} in {path}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_qupath_reads_the_regions(run, result, heatmap, tmp_path):
    data = strict_json(export(run, result, tmp_path / "a.geojson", "qupath"))
    jsonschema.validate(data, QUPATH)
    rows, cols = heatmap.slide.shape
    names = set()
    for feature in data["features"]:
        uuid.UUID(feature["id"])
        names.add(feature["properties"]["classification"]["name"])
        x0, y0, x1, y1 = shapely.geometry.shape(feature["geometry"]).bounds
        assert 0 <= x0 < x1 <= cols
        assert 0 <= y0 < y1 <= rows
    assert names
    assert names <= set(heatmap.classes)


def test_qupath_gets_pixels_of_a_scene_too(heatmap, tmp_path):
    from rasterio.crs import CRS

    place = {"crs": CRS.from_epsg(32633).to_wkt(), "transform": (10.0, 0, 5e5, 0, -10.0, 5.4e6)}
    scene = replace(heatmap, slide=heatmap.slide.model_copy(update=place))
    assert scene.slide.is_georeferenced
    written = atlas_wsi.export_result(scene, tmp_path, to="qupath")
    data = strict_json(written.path)
    jsonschema.validate(data, QUPATH)
    outlines = [shapely.geometry.shape(f["geometry"]) for f in data["features"]]
    assert shapely.total_bounds(outlines).max() <= max(heatmap.slide.shape)


def test_the_cog_is_valid_and_holds_the_probabilities(run, result, heatmap, tmp_path):
    path = export(run, result, tmp_path / "a.tif", "cog")
    assert cog_validate(path, strict=True) == (True, [], [])
    with rasterio.open(path) as file:
        np.testing.assert_array_equal(file.read(), heatmap.probabilities.astype(np.float32))
        assert file.descriptions == heatmap.classes


def test_the_digital_slide_archive_takes_the_annotations(run, result, heatmap, tmp_path):
    path = export(run, result, tmp_path / "a.json", "dsa")
    annotations = strict_json(path)
    jsonschema.validate(annotations, DSA)
    assert len(annotations) == 1 + len(heatmap.classes)
    for k, one in enumerate(annotations[1:]):
        (grid,) = one["elements"]
        values = np.reshape(grid["values"], (-1, grid["gridWidth"]))
        np.testing.assert_allclose(values, np.nan_to_num(heatmap.probabilities[k]), atol=1e-4)
        assert len(grid["colorRange"]) == len(grid["rangeValues"])
        # a value of a contour belongs to a point: the center of its cell
        (y, x), (step_y, step_x) = heatmap.grid.origin_px, heatmap.grid.step_px
        assert grid["origin"][:2] == [x + step_x / 2, y + step_y / 2]


def test_polylines_leave_holes_free(heatmap, tmp_path):
    winner = np.full((30, 40), -1)
    winner[3:25, 3:35] = 0
    winner[6:12, 6:12] = winner[14:20, 20:28] = -1  # two holes
    winner[15:19, 22:26] = 1  # an island in one
    made = painted(heatmap, winner)
    written = atlas_wsi.export_result(made, tmp_path / "a.json", to="dsa")
    annotations = strict_json(written.path)
    jsonschema.validate(annotations, DSA)
    cell = made.grid.step_px[0] * made.grid.step_px[1]
    for index, name in enumerate(made.classes[:2]):
        pieces = [
            shapely.Polygon([p[:2] for p in element["points"]])
            for element in annotations[0]["elements"]
            if element["group"] == name
        ]
        assert all(piece.is_valid for piece in pieces)
        expected = (winner == index).sum() * cell
        assert shapely.union_all(pieces).area == pytest.approx(sum(p.area for p in pieces))
        assert sum(p.area for p in pieces) == pytest.approx(expected, rel=0.05)


def test_wsinfer_reads_the_table(run, result, heatmap, tmp_path):
    path = export(run, result, tmp_path, "wsinfer-csv")
    with (path / "tissue 1.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    prob = [f"prob_{name}" for name in heatmap.classes]
    assert list(rows[0]) == ["minx", "miny", "width", "height", *prob]
    assert len(rows) == (heatmap.argmax() >= 0).sum()
    x, y, w, h = (np.array([int(r[k]) for r in rows]) for k in ("minx", "miny", "width", "height"))
    boxes = shapely.box(x, y, x + w, y + h)
    assert shapely.union_all(boxes).area == (w * h).sum()  # none lies over another
    found = np.array([[float(r[name]) for name in prob] for r in rows])
    np.testing.assert_allclose(found.sum(1), 1, atol=5e-3)
    step_y, step_x = heatmap.grid.step_px
    for row, one in zip(rows, found, strict=True):
        cell = int(int(row["miny"]) / step_y + 0.5), int(int(row["minx"]) / step_x + 0.5)
        np.testing.assert_allclose(one, heatmap.probabilities[:, *cell], atol=1e-3)


def test_trident_reads_the_tiles(run, result, heatmap, tmp_path):
    export(run, result, tmp_path / "a.h5", "trident-h5")
    with h5py.File(tmp_path / "a.h5") as file:
        coords, features = file["coords"], file["features"]
        # its reader of coordinates takes these three and needs the fourth for slide encoders
        size, level0, target = (
            coords.attrs[k] for k in ("patch_size", "level0_magnification", "target_magnification")
        )
        assert coords.attrs["patch_size_level0"] == round(heatmap.grid.step_px[1])
        assert size == coords.attrs["patch_size_level0"] * target / level0
        assert coords.dtype == np.int64
        assert features.shape == (len(coords), len(heatmap.classes))
        assert features.attrs["atlas_features"] == "class probabilities"
        assert features.attrs["atlas_classes"].split("\n") == list(heatmap.classes)
        np.testing.assert_allclose(features[:].sum(1), 1, atol=5e-3)


def test_clam_reads_the_tiles(run, result, heatmap, tmp_path):
    export(run, result, tmp_path / "a.h5", "clam-h5")
    with h5py.File(tmp_path / "a.h5") as file:
        coords = file["coords"]
        assert coords.attrs["patch_level"] == 0
        assert coords.attrs["patch_size"] == round(heatmap.grid.step_px[1])
        keys = {"downsample", "downsampled_level_dim", "level_dim", "name", "save_path"}
        assert keys <= set(coords.attrs)
        assert file["features"].dtype == np.float32
        assert len(file["features"]) == len(coords)


def test_stamp_reads_the_tiles(run, result, heatmap, tmp_path):
    export(run, result, tmp_path / "a.h5", "stamp-h5")
    with h5py.File(tmp_path / "a.h5") as file:
        keys = {"stamp_version", "extractor", "unit", "tile_size_um", "tile_size_px", "feat_type"}
        assert keys <= set(file.attrs)
        assert (file.attrs["unit"], file.attrs["feat_type"]) == ("um", "tile")
        assert file["feats"].dtype == np.float16
        assert file["coords"].dtype.kind == "f"
        assert file.attrs["tile_size_um"] == pytest.approx(heatmap.mpp[1], rel=0.02)
        grid = file["coords"][:] / heatmap.mpp[1]
        np.testing.assert_allclose(grid, grid.round(), atol=0.1)


@pytest.mark.slow
def test_spatialdata_reads_every_element(run, result, heatmap, tmp_path):
    path = export(run, result, tmp_path / "a.zarr", "spatialdata")
    data = spatialdata.read_zarr(path)
    assert set(data.images) == {"probabilities", "slide"}
    assert set(data.labels) == {"classes", "tissue"}
    assert data["probabilities"].dims == ("c", "y", "x")
    np.testing.assert_array_equal(data["probabilities"].values, heatmap.probabilities)
    np.testing.assert_array_equal(data["classes"].values, heatmap.argmax() + 1)
    (name,) = data.tables
    table = data[name]
    assert name == "atlas_test_tiles"
    assert list(table.var_names) == list(heatmap.classes)
    assert set(table.uns["spatialdata_attrs"]) == {"region", "region_key", "instance_key"}
    # the table belongs to the tiles, one to one
    tiles, matched = spatialdata.join_spatialelement_table(
        sdata=data, spatial_element_names="tiles", table_name=name
    )
    assert len(tiles["tiles"]) == len(matched) == len(table)
    # all lie in the same level-0 pixels
    for element in ("slide", "tissue", "tiles"):
        extent = spatialdata.get_extent(data[element], coordinate_system="global")
        assert extent["x"][1] <= heatmap.slide.shape[1] + 1
    assert extent["x"][1] - extent["x"][0] > heatmap.slide.shape[1] / 4
    # and again in its place
    again = run("export", result, "--to", "spatialdata", "-o", path)
    assert again.exit_code == 2
    export(run, result, path, "spatialdata", "--overwrite")
    assert set(spatialdata.read_zarr(path).labels) == {"classes", "tissue"}
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


def test_ome_zarr_reads_the_result_itself(result, heatmap):
    location = ome_zarr.io.parse_url(result / "heatmap.ome.zarr")
    image = next(iter(ome_zarr.reader.Reader(location)()))
    assert image.data[0].shape == heatmap.probabilities.shape
    assert image.metadata["channel_names"] == list(heatmap.classes)


def test_pictures_and_pages_hold_the_slide(run, result, heatmap, tmp_path):
    export(run, result, tmp_path / "a.png", "png")
    with Image.open(tmp_path / "a.png") as picture:
        assert min(picture.size) > 300
    text = export(run, result, tmp_path / "a.html", "html").read_text(encoding="utf-8")
    assert "http" not in text.replace("http-equiv", "")  # nothing is fetched
    assert text.count("data:image/") == 2
    assert all(name in text for name in heatmap.classes)


def test_a_name_from_outside_is_text_on_the_page(heatmap, tmp_path):
    named = heatmap.slide.model_copy(update={"name": "<script>alert(1)</script>"})
    written = atlas_wsi.export_result(replace(heatmap, slide=named), tmp_path, to="html")
    assert "<script>alert" not in written.path.read_text(encoding="utf-8")


def test_a_moved_slide_is_left_out_or_named(heatmap, slide, tmp_path):
    moved = replace(heatmap, slide=heatmap.slide.model_copy(update={"path": "/nowhere/a.svs"}))
    alone = atlas_wsi.export_result(moved, tmp_path / "a.html", to="html")
    assert "--slide" in alone.warnings[0]
    assert not atlas_wsi.export_result(moved, tmp_path / "b.html", to="html", slide=slide).warnings
    other = replace(moved, slide=moved.slide.model_copy(update={"shape": (10, 10)}))
    with pytest.raises(SlideError, match="was made from"):
        atlas_wsi.export_result(other, tmp_path / "c.html", to="html", slide=slide)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.html", "b.html"]


@pytest.mark.parametrize("to", sorted(set(EXPORT_FORMATS) - {"trident-h5", "clam-h5", "stamp-h5"}))
def test_a_slide_without_tissue_is_exported(heatmap, tmp_path, to):
    empty = painted(heatmap, np.full((5, 7), -1))
    assert atlas_wsi.export_result(empty, tmp_path, to=to).path.exists()


def test_no_tile_and_no_square_tile_are_errors_in_hdf5(heatmap, tmp_path):
    with pytest.raises(ResultError, match="no cell"):
        atlas_wsi.export_result(painted(heatmap, np.full((5, 7), -1)), tmp_path, to="clam-h5")
    with pytest.raises(ResultError, match="square"):
        atlas_wsi.export_result(painted(heatmap, np.zeros((5, 20), int)), tmp_path, to="clam-h5")
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_kept(run, result, heatmap, tmp_path):
    there = tmp_path / "a.csv"
    there.write_text("mine")
    with pytest.raises(ResultExistsError, match="there"):
        atlas_wsi.export_result(heatmap, there, to="wsinfer-csv")
    assert there.read_text() == "mine"
    folder = tmp_path / "b.zarr"
    folder.mkdir()
    (folder / "mine").touch()
    refused = run("export", result, "--to", "spatialdata", "-o", folder, "--overwrite")
    assert refused.exit_code == 2
    assert "was not changed" in refused.stderr
    assert (folder / "mine").exists()
    below = run("export", result, "--to", "png", "-o", there / "x.png")
    assert below.exit_code == 2
    export(run, result, there, "wsinfer-csv", "--overwrite")
    assert there.read_text().startswith("minx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv", "b.zarr"]


def test_a_folder_of_results_is_exported_slide_by_slide(run, result, tmp_path):
    many = tmp_path / "many"
    for name in ("a", "b"):
        shutil.copytree(result, many / name)
    (many / "b" / "heatmap.ome.zarr" / "zarr.json").write_text("{}")
    out = tmp_path / "out"
    done = run("export", many, "--to", "qupath", "-o", out, "--json")
    assert done.exit_code == 2  # one is damaged, the other is written
    first, second = json.loads(done.stdout)
    assert first["file"].endswith("tissue 1.geojson")
    assert "error" in second
    assert [p.name for p in out.iterdir()] == ["tissue 1.geojson"]
    refused = run("export", many, "--to", "qupath", "-o", tmp_path / "a.geojson")
    assert refused.exit_code == 2
    nothing = run("export", out, "--to", "png", "-o", tmp_path)
    assert nothing.exit_code == CorruptResultError.exit_code
    assert "not a result" in nothing.stderr


@pytest.mark.parametrize(
    ("to", "package", "extra"),
    [("trident-h5", "h5py", "embed"), ("spatialdata", "spatialdata", "spatialdata")],
)
def test_a_missing_package_is_named_with_its_command(
    heatmap, tmp_path, monkeypatch, to, package, extra
):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(OutputNotWritableError) as caught:
        atlas_wsi.export_result(heatmap, tmp_path, to=to)
    assert package in caught.value.message
    assert caught.value.hint == f"pip install 'atlas-wsi[{extra}]'"
    assert not list(tmp_path.iterdir())

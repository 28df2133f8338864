from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rasterio.crs import CRS
from scipy.ndimage import zoom

from atlas_wsi.heatmap.formats.geojson import write_geojson
from atlas_wsi.heatmap.regions import find_regions

if TYPE_CHECKING:
    from pathlib import Path

    from atlas_wsi.heatmap.heatmap import Heatmap

maps = st.tuples(st.integers(1, 14), st.integers(1, 14)).flatmap(
    lambda shape: arrays(np.int64, shape, elements=st.integers(-1, 2))
)
steps = st.sampled_from([(64.0, 64.0), (128.26, 64.13), (1.0, 1.0)])


def written(heatmap: Heatmap, tmp_path: Path) -> dict[str, Any]:
    write_geojson(heatmap, tmp_path / "regions.geojson")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads((tmp_path / "regions.geojson").read_text("utf-8"), parse_constant=refuse)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(maps, steps, st.integers(1, 4), st.integers(1, 3))
def test_every_polygon_is_valid_inside_the_slide_and_apart_from_the_others(
    make_heatmap, winner: np.ndarray, step, min_cells: int, enlarge: int
) -> None:
    winner = winner.repeat(enlarge, axis=0).repeat(enlarge, axis=1)
    heatmap = make_heatmap(winner=winner, step=step)
    polygons = [r.polygon for r in find_regions(heatmap, min_cells=min_cells).regions]
    slide = shapely.box(0, 0, heatmap.slide.shape[1], heatmap.slide.shape[0]).buffer(1e-9)
    for polygon in polygons:
        assert polygon.is_valid
        assert polygon.area > 0
        assert slide.covers(polygon)
        assert shapely.is_ccw(shapely.get_exterior_ring(shapely.get_parts(polygon))).all()
    together = shapely.union_all(polygons).area
    assert together == pytest.approx(sum(p.area for p in polygons), rel=1e-6, abs=1e-6)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(maps.filter(lambda m: (m >= 0).any()))
def test_areas_of_the_polygons_are_about_those_of_the_heatmap(make_heatmap, coarse) -> None:
    winner = coarse.repeat(8, axis=0).repeat(8, axis=1)
    heatmap = make_heatmap(winner=winner, slide_shape=(winner.shape[0] * 64, winner.shape[1] * 64))
    pixel_mm2 = (0.5e-3) ** 2
    areas = dict.fromkeys(heatmap.classes, 0.0)
    for region in find_regions(heatmap).regions:
        areas[heatmap.classes[region.class_index]] += region.polygon.area * pixel_mm2
    for name, area in heatmap.areas().items():
        assert areas[name] == pytest.approx(area, rel=0.04, abs=0.02 * (64 * 0.5e-3) ** 2)


def test_steps_of_single_cells_are_smoothed(make_heatmap) -> None:
    rows, cols = np.ogrid[:60, :60]
    disk = np.where((rows - 30) ** 2 + (cols - 30) ** 2 < 25**2, 0, -1)
    polygon = find_regions(make_heatmap(winner=disk)).regions[0].polygon
    assert len(shapely.get_coordinates(polygon)) < 60
    assert polygon.area / 64**2 == pytest.approx(np.pi * 25**2, rel=0.02)
    ring = polygon.exterior
    assert ring.length / 64 < 1.15 * 2 * np.pi * 25  # of a staircase it is 8 / (2 pi) = 1.27


def test_neighbors_share_their_border(make_heatmap) -> None:
    rows, cols = np.ogrid[:40, :40]
    heatmap = make_heatmap(winner=(rows * 2 + cols > 60).astype(int), slide_shape=(2560, 2560))
    first, second = (r.polygon for r in find_regions(heatmap).regions)
    assert first.intersection(second).area == 0
    assert shapely.union(first, second).equals(shapely.box(0, 0, 2560, 2560))


def test_a_patch_too_small_goes_to_its_neighbor_or_vanishes(make_heatmap) -> None:
    winner = np.full((20, 20), -1)
    winner[2:14, 2:14] = 0
    winner[5, 5:8] = 1
    winner[17, 17] = 2
    found = find_regions(make_heatmap(winner=winner)).regions
    assert [(r.class_index, r.n_cells) for r in found] == [(0, 144)]
    everything = find_regions(make_heatmap(winner=winner), min_cells=1).regions
    assert [(r.class_index, r.n_cells) for r in everything] == [(0, 141), (1, 3), (2, 1)]


def test_the_largest_regions_are_kept_and_the_rest_is_counted(make_heatmap) -> None:
    winner = np.full((30, 30), -1)
    for k, size in enumerate((2, 3, 4, 5)):
        winner[7 * k : 7 * k + size, :size] = 0
    found = find_regions(make_heatmap(winner=winner), max_regions=2)
    assert [r.n_cells for r in found.regions] == [25, 16]
    assert found.n_left_out == 2


@pytest.mark.slow
def test_more_regions_than_a_viewer_opens_are_a_warning(make_heatmap, tmp_path: Path) -> None:
    rows, cols = np.ogrid[:460, :460]
    dots = np.where((rows % 4 < 2) & (cols % 4 < 2), 0, -1)
    heatmap = make_heatmap(winner=dots, n_classes=1)
    (warning,) = write_geojson(heatmap, tmp_path / "regions.geojson")
    assert "10000 largest" in warning
    assert "3225 smaller" in warning


def test_what_qupath_reads(heatmap: Heatmap, tmp_path: Path) -> None:
    collection = written(heatmap, tmp_path)
    assert collection["type"] == "FeatureCollection"
    assert "crs" not in collection
    for feature in collection["features"]:
        properties = feature["properties"]
        index = heatmap.classes.index(properties["classification"]["name"])
        assert properties["objectType"] == "annotation"
        assert properties["classification"]["color"] == list(
            bytes.fromhex(heatmap.colors[index][1:])
        )
        measured = properties["measurements"]
        assert max(heatmap.classes, key=lambda c: measured[f"prob_{c}"]) == heatmap.classes[index]
        polygon = shapely.geometry.shape(feature["geometry"])
        assert measured["area_mm2"] == pytest.approx(polygon.area * 0.25e-6)
        assert str(uuid.UUID(feature["id"])) == feature["id"]
    assert len({f["id"] for f in collection["features"]}) == len(collection["features"]) > 3


def test_mean_probabilities_are_those_of_the_regions_cells(make_heatmap) -> None:
    winner = np.array([[0, 0, 1, 1]] * 4)
    heatmap = make_heatmap(winner=winner, n_classes=2)
    left, right = find_regions(heatmap).regions
    for region, cols in ((left, slice(0, 2)), (right, slice(2, 4))):
        np.testing.assert_allclose(
            region.probabilities, heatmap.probabilities[:, :, cols].mean((1, 2)), rtol=1e-5
        )


def test_the_same_result_gives_the_same_file(make_heatmap, tmp_path: Path) -> None:
    texts = set()
    for _ in range(2):
        write_geojson(make_heatmap(), tmp_path / "regions.geojson")
        texts.add((tmp_path / "regions.geojson").read_bytes())
    assert len(texts) == 1


def test_without_tissue_the_collection_is_empty(make_heatmap, tmp_path: Path) -> None:
    assert written(make_heatmap(tissue=0), tmp_path)["features"] == []


def test_regions_of_a_scene_lie_in_its_crs(make_heatmap, tmp_path: Path) -> None:
    winner = zoom(np.array([[0, 1], [1, 0]]), 10, order=0)
    scene = make_heatmap(winner=winner, n_classes=2, is_scene=True)
    collection = written(scene, tmp_path)
    assert collection["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::32633"
    rows, cols = scene.slide.shape
    west, south, east, north = shapely.total_bounds(
        [shapely.geometry.shape(f["geometry"]) for f in collection["features"]]
    )
    assert (west, north) == (5e5, 5.4e6)
    assert (east, south) == pytest.approx((5e5 + 10 * cols, 5.4e6 - 10 * rows))
    assert "area_m2" in collection["features"][0]["properties"]["measurements"]


def test_longitude_and_latitude_are_named_as_what_geojson_means(
    make_heatmap, tmp_path: Path
) -> None:
    degrees = make_heatmap(
        is_scene=True,
        crs=CRS.from_epsg(4326).to_wkt(),
        transform=(1e-4, 0.0, 13.0, 0.0, -1e-4, 50.0),
    )
    assert written(degrees, tmp_path)["crs"]["properties"]["name"].endswith("CRS84")

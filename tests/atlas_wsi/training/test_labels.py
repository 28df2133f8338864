"""Areas keep their class and their place, whatever table or coordinates they come in."""

from __future__ import annotations

import json

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import tifffile
from rasterio.transform import from_origin
from rasterio.warp import transform

from atlas_wsi import open_slide
from atlas_wsi.errors import DatasetError
from atlas_wsi.tissue.areas import read_areas
from atlas_wsi.training.data.labeled_areas import areas_by_class

UTM = "EPSG:32633"
LEFT, TOP, SIDE = 4e5, 5.6e6, 10_000  # pixels of 10 m


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """100 km a side, as Sentinel-2's, without a pixel written."""
    path = tmp_path_factory.mktemp("labels") / "scene.tif"
    with rasterio.open(
        path, "w", driver="GTiff", height=SIDE, width=SIDE, count=3, dtype="uint8", crs=UTM,
        transform=from_origin(LEFT, TOP, 10, 10), tiled=True, sparse_ok=True,
    ):  # fmt: skip
        pass
    with open_slide(path) as slide:
        yield slide


@pytest.fixture
def slide(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((512, 1024, 3), np.uint8), tile=(256, 256))
    with open_slide(tmp_path / "a.tif") as slide:
        yield slide


def features(*areas):
    return {
        "type": "FeatureCollection",
        "features": [
            {"type": "Feature", "geometry": shapely.geometry.mapping(shape), "properties": facts}
            for shape, facts in areas
        ],
    }


def write(path, data):
    path.write_text(json.dumps(data))
    return path


def in_pixels(shape):
    """Many points of the edges, each brought over by itself."""
    dense = shapely.segmentize(shape, shape.length / 2000)

    def move(xy):
        x, y = transform("EPSG:4326", UTM, xy[:, 0], xy[:, 1])
        return np.stack([(np.array(x) - LEFT) / 10, (TOP - np.array(y)) / 10], axis=1)

    return shapely.transform(dense, move)


def furthest(found, expected):
    return shapely.hausdorff_distance(found.exterior, expected.exterior)


@pytest.mark.parametrize("reach", [0.4, 30])
def test_edges_are_straight_in_the_coordinates_they_were_drawn_in(scene, tmp_path, reach):
    """Within a tenth of a pixel; by their corners alone they would be several pixels off."""
    (lon,), (lat,) = transform(UTM, "EPSG:4326", [LEFT + 5e4], [TOP - 5e4])
    drawn = shapely.box(lon - reach, lat - reach, lon + 0.3, lat + 0.4)
    table = geopandas.GeoDataFrame({"class": ["wood"]}, geometry=[drawn], crs="EPSG:4326")
    table.to_file(tmp_path / "a.gpkg")
    write(tmp_path / "a.geojson", features((drawn, {"class": "wood"})))

    frame = shapely.box(0, 0, SIDE, SIDE)
    expected = in_pixels(drawn).intersection(frame)
    found = [areas_by_class(tmp_path / f"a.{kind}", scene) for kind in ("gpkg", "geojson")]
    found += [{"wood": read_areas(tmp_path / "a.geojson", scene)}]
    for areas in found:
        (one,) = areas["wood"]
        assert furthest(one.intersection(frame), expected) < 0.1


def test_a_label_raster_in_degrees_is_laid_where_it_belongs(scene, tmp_path):
    (lon,), (lat,) = transform(UTM, "EPSG:4326", [LEFT + 5e4], [TOP - 5e4])
    west, north, step = lon - 0.5, lat + 0.25, 0.05
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", height=10, width=20, count=1, dtype="uint8",
        crs="EPSG:4326", transform=from_origin(west, north, step, step),
    ) as raster:  # fmt: skip
        values = np.ones((10, 20), np.uint8)
        values[:, 10:] = 2
        raster.write(values, 1)
    found = areas_by_class(tmp_path / "a.tif", scene)
    for name, x in (("1", west), ("2", west + 10 * step)):
        box = shapely.box(x, north - 10 * step, x + 10 * step, north)
        assert furthest(found[name][0], in_pixels(box)) < 0.1


def test_a_scene_across_the_date_line_keeps_its_areas(tmp_path):
    path = tmp_path / "fiji.tif"
    with rasterio.open(
        path, "w", driver="GTiff", height=1000, width=1000, count=3, dtype="uint8",
        crs="EPSG:32760", transform=from_origin(8.1e5, 8.1e6, 100, 100), tiled=True,
    ):  # fmt: skip
        pass
    write(
        tmp_path / "a.geojson",
        features((shapely.box(179.9, -17.9, 179.95, -17.8), {"class": "sea"})),
    )
    with open_slide(path) as slide:
        (sea,) = areas_by_class(tmp_path / "a.geojson", slide)["sea"]
    x, y = transform("EPSG:4326", "EPSG:32760", [179.925], [-17.85])
    center = ((x[0] - 8.1e5) / 100, (8.1e6 - y[0]) / 100)
    assert sea.centroid.coords[0] == pytest.approx(center, abs=0.1)


def test_numbers_are_classes_and_empty_cells_are_none(scene, tmp_path):
    box = shapely.box(LEFT, TOP - 1e4, LEFT + 1e4, TOP)
    values = [3, None, 0, " wood ", "", "  "]
    for kind in ("number", "text"):
        chosen = [v for v in values if v is None or isinstance(v, str) == (kind == "text")]
        shapes = [shapely.affinity.translate(box, 2e4 * k) for k in range(len(chosen))]
        geopandas.GeoDataFrame({"class": chosen}, geometry=shapes, crs=UTM).to_file(
            tmp_path / f"{kind}.gpkg"
        )
    assert set(areas_by_class(tmp_path / "number.gpkg", scene)) == {"3", "0"}
    assert set(areas_by_class(tmp_path / "text.gpkg", scene)) == {"wood"}


def test_numbers_are_classes_in_geojson_too(slide, tmp_path):
    areas = [
        (shapely.box(100 * k, 0, 100 * k + 50, 50), {"class": v}) for k, v in enumerate((0, 3.0))
    ]
    path = write(tmp_path / "a.geojson", features(*areas))
    assert set(areas_by_class(path, slide)) == {"0", "3"}


def test_a_name_is_no_class_where_others_are_classified(slide, tmp_path):
    """QuPath's annotations have names too."""
    path = write(
        tmp_path / "a.geojson",
        features(
            (shapely.box(0, 0, 50, 50), {"classification": {"name": "Tumor"}, "name": "core"}),
            (shapely.box(100, 0, 150, 50), {"name": "look here"}),
            (shapely.box(200, 0, 250, 50), {"classification": {"names": ["Tumor", "Positive"]}}),
        ),
    )
    assert set(areas_by_class(path, slide)) == {"Tumor", "Tumor: Positive"}


def test_what_two_classes_share_is_of_the_smaller(slide, tmp_path):
    tissue, tumor, hole = (shapely.box(a, a, b, b) for a, b in ((0, 400), (100, 200), (120, 140)))
    beside = shapely.box(400, 0, 500, 400)  # touches, shares nothing
    path = write(
        tmp_path / "a.geojson",
        features(
            (tumor, {"class": "tumor"}),
            (tissue, {"class": "tissue"}),
            (hole, {"class": "tissue"}),
            (beside, {"class": "glass"}),
        ),
    )
    found = {k: shapely.union_all(v) for k, v in areas_by_class(path, slide).items()}
    assert found["tumor"].equals(tumor.difference(hole))
    assert found["tissue"].equals(tissue.difference(tumor).union(hole))
    assert found["glass"].equals(beside)


def test_one_area_with_two_classes_is_refused(slide, tmp_path):
    box = shapely.box(0, 0, 50, 50)
    path = write(tmp_path / "a.geojson", features((box, {"class": "a"}), (box, {"class": "b"})))
    with pytest.raises(DatasetError, match="same area"):
        areas_by_class(path, slide)


def test_what_is_missing_is_named(slide, tmp_path):
    spot = write(tmp_path / "spot.geojson", features((shapely.Point(5, 5), {"class": "mitosis"})))
    with pytest.raises(DatasetError, match="has no polygon"):
        areas_by_class(spot, slide)
    with pytest.raises(DatasetError, match="no column cover; it has class"):
        areas_by_class(spot, slide, column="cover")

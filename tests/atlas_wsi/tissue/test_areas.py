"""Areas and masks from files: what is read, and what is refused with a reason."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rasterio.warp import transform_geom

import atlas_wsi
from atlas_wsi.errors import DatasetError
from atlas_wsi.slides.synthetic import make_svs
from atlas_wsi.slides.synthetic_scenes import make_scene
from atlas_wsi.tissue.areas import read_areas, read_tissue


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    path = tmp_path_factory.mktemp("areas") / "a.svs"
    make_svs(path, shape=(1800, 2400), mpp=0.5, tissue=0.7, seed=2)
    with atlas_wsi.open_slide(path) as slide:
        yield slide


def ring(x0, y0, x1, y1):
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]


def write(path, data):
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize("wrap", ["geometry", "feature", "collection", "list"])
def test_every_form_of_geojson_is_read_with_its_holes(slide, tmp_path, wrap):
    geometry = {
        "type": "Polygon",
        "coordinates": [ring(100, 200, 900, 1000), ring(300, 400, 500, 600)],
    }
    feature = {"type": "Feature", "geometry": geometry, "properties": {}}
    data = {
        "geometry": geometry,
        "feature": feature,
        "collection": {"type": "FeatureCollection", "features": [feature]},
        "list": [feature],
    }[wrap]
    (polygon,) = read_areas(write(tmp_path / "a.geojson", data), slide)
    assert polygon.bounds == (100, 200, 900, 1000)
    assert polygon.area == 800 * 800 - 200 * 200
    mask = read_tissue(tmp_path / "a.geojson", slide)
    cell = mask.grid.step_px[0] * mask.grid.step_px[1]
    assert mask.mask.sum() * cell == pytest.approx(polygon.area, rel=0.1)


def test_a_crossed_ring_is_mended_and_lines_are_left_out(slide, tmp_path):
    bow = {"type": "Polygon", "coordinates": [[[0, 0], [800, 800], [800, 0], [0, 800], [0, 0]]]}
    line = {"type": "LineString", "coordinates": [[0, 0], [5, 5]]}
    data = [{"type": "Feature", "geometry": g, "properties": {}} for g in (bow, line)]
    found = read_areas(write(tmp_path / "a.geojson", data), slide)
    assert sum(p.area for p in found) == pytest.approx(800 * 800 / 2)


def test_areas_of_a_scene_come_in_degrees_or_in_a_named_crs(tmp_path):
    path = tmp_path / "scene.tif"
    make_scene(path, (900, 1100), gsd=10.0)
    with atlas_wsi.open_slide(path) as scene:
        a, _, c, _, e, f = scene.transform
        corners = ring(c + 100 * a, f + 200 * e, c + 400 * a, f + 600 * e)
        here = {"type": "Polygon", "coordinates": [corners]}
        degrees = transform_geom(scene.crs, "EPSG:4326", here)
        from rasterio.crs import CRS

        epsg = CRS.from_wkt(scene.crs).to_epsg()
        named = {
            "type": "FeatureCollection",
            "crs": {"type": "name", "properties": {"name": f"EPSG:{epsg}"}},
            "features": [{"type": "Feature", "geometry": here, "properties": {}}],
        }
        for data in (degrees, named):
            (polygon,) = read_areas(write(tmp_path / "a.json", data), scene)
            assert polygon.bounds == pytest.approx((100, 200, 400, 600), abs=0.5)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not GeoJSON"),
        ("[]", "no polygon"),
        (json.dumps({"type": "Point", "coordinates": [1, 2]}), "no polygon"),
        (json.dumps({"type": "Polygon", "coordinates": "x"}), "invalid"),
        (json.dumps({"type": "Polygon", "coordinates": [ring(1e6, 1e6, 2e6, 2e6)]}), "touches"),
    ],
)
def test_what_is_no_area_of_the_slide_is_refused(slide, tmp_path, text, says):
    path = tmp_path / "a.geojson"
    path.write_text(text)
    with pytest.raises(DatasetError, match=says):
        read_areas(path, slide)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(
                    ["type", "coordinates", "geometry", "features", "geometries", "crs"]
                ),
                inner
                | st.sampled_from(
                    ["Polygon", "Feature", "FeatureCollection", "GeometryCollection"]
                ),
                max_size=4,
            )
        ),
        max_leaves=20,
    )
)
def test_any_json_gives_areas_or_a_reason(slide, tmp_path_factory, data):
    path = write(tmp_path_factory.mktemp("any") / "a.geojson", data)
    try:
        assert read_areas(path, slide)
    except DatasetError as error:
        assert str(path) in error.message  # noqa: PT017


def test_a_picture_is_laid_over_the_whole_slide(slide, tmp_path):
    picture = np.zeros((90, 120), np.uint8)
    picture[30:60, 40:80] = 255
    Image.fromarray(picture).save(tmp_path / "m.png")
    mask = read_tissue(tmp_path / "m.png", slide)
    result = atlas_wsi.predict(slide, "atlas_test", tissue=mask)
    rows, cols = np.nonzero(np.isfinite(result.probabilities[0]))
    step = result.grid.step_px
    assert 600 - step[0] <= rows.min() * step[0]
    assert (rows.max() + 1) * step[0] <= 1200 + step[0]
    assert 800 - step[1] <= cols.min() * step[1]
    assert (cols.max() + 1) * step[1] <= 1600 + step[1]
    Image.fromarray(picture[:, :60]).save(tmp_path / "half.png")
    with pytest.raises(DatasetError, match="form"):
        read_tissue(tmp_path / "half.png", slide)
    (tmp_path / "no.png").write_text("no")
    with pytest.raises(DatasetError, match="picture"):
        read_tissue(tmp_path / "no.png", slide)

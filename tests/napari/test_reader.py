"""What napari shows of slides, scenes and results; its models need no window."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Layer
from npe2 import PluginManager, PluginManifest

import atlas_wsi
from atlas_wsi.slides.synthetic_scenes import make_scene
from napari_atlas_wsi._layers import RESULT_KEY, Frame, describe, heatmap_layers, slide_layers
from napari_atlas_wsi._reader import get_reader
from napari_atlas_wsi._writer import write_classes


def show(layers):
    viewer = ViewerModel()
    for layer in layers:
        viewer.add_layer(Layer.create(*layer))
    return viewer


def test_the_manifest_is_found_and_all_it_names_can_be_imported():
    manifest = PluginManifest.from_distribution("atlas-wsi")
    manifest.validate_imports()
    assert manifest.display_name == "Atlas WSI"


@pytest.mark.parametrize("name", ["a.svs", "b.ndpi", "c.tif", "d.ome.zarr", "e.mrxs", "f.dcm"])
def test_napari_asks_this_plugin_for_slides(name):
    manager = PluginManager()
    manager.register(PluginManifest.from_distribution("atlas-wsi"))
    assert "atlas-wsi" in {r.plugin_name for r in manager.iter_compatible_readers([name])}


def test_a_slide_lies_in_micrometers_and_ends_in_a_small_level(slide_path):
    viewer = show(get_reader(str(slide_path))(str(slide_path)))
    (layer,) = viewer.layers
    assert layer.multiscale
    assert layer.rgb
    assert max(layer.data[-1].shape) <= 1024
    assert {str(u) for u in layer.units} == {"micrometer"}
    np.testing.assert_allclose(layer.scale, 0.5)
    np.testing.assert_allclose(layer.data_to_world((0, 0)), 0)
    with atlas_wsi.open_slide(slide_path) as slide:
        expected = slide.read_region(500, 600, 64, 64)
    np.testing.assert_array_equal(layer.data[0][500:564, 600:664].compute(), expected)


def test_a_result_lies_over_its_slide_and_shows_three_layers(slide_path, result_folder, result):
    paths = [str(slide_path), str(result_folder)]
    viewer = show(get_reader(paths)(paths))
    slide, tissue, classes, probability = viewer.layers
    assert {layer.units for layer in viewer.layers} == {slide.units}
    step = result.grid.step_px[0]
    # the first cell's corner is the first pixel's corner, half a pixel before world 0
    corner = np.array(probability.data_to_world((-0.5, -0.5)))
    np.testing.assert_allclose(corner, -0.25)
    np.testing.assert_allclose(probability.scale, step * 0.5)
    assert tuple(probability.contrast_limits) == (0, 1)
    largest = max(result.areas(), key=result.areas().get)
    assert probability.name == f"tissue: {largest}"
    expected = result.probabilities[result.classes.index(largest)].astype(np.float16)
    np.testing.assert_array_equal(probability.data, expected.astype(np.float32))
    np.testing.assert_array_equal(classes.data, result.argmax() + 1)
    assert tissue.data.shape == result.tissue.mask.shape
    row, col = np.argwhere(result.argmax() >= 0)[0]
    here = classes.data_to_world((row, col))
    classes.visible = True
    assert (
        result.classes[result.argmax()[row, col]] in classes.get_status(here, world=True)["value"]
    )
    color = classes.colormap.color_dict[1]
    expected = [int(result.colors[0][k : k + 2], 16) / 255 for k in (1, 3, 5)]
    np.testing.assert_allclose(color[:3], expected, atol=1e-6)


def test_hover_text_names_class_probability_and_place(result):
    row, col = np.argwhere(result.argmax() >= 0)[-1]
    y, x = (
        o + (n + 0.5) * s
        for o, n, s in zip(result.grid.origin_px, (row, col), result.grid.step_px, strict=True)
    )
    best = result.argmax()[row, col]
    text = describe(result, y, x)
    assert text.startswith(f"{result.classes[best]} {result.probabilities[best, row, col]:.2f}")
    assert f"y {y * 0.5:.0f}, x {x * 0.5:.0f} um" in text
    assert describe(result, -1, -1) == ""


def test_the_world_leads_back_to_level_0(result):
    frame = Frame.of(result.slide)
    np.testing.assert_allclose(frame.to_level0((0, 0)), 0.5)
    np.testing.assert_allclose(frame.to_level0((50, 100)), (100.5, 200.5))


def test_a_scene_lies_on_the_map_in_meters(tmp_path):
    path = tmp_path / "scene.tif"
    make_scene(path)
    with atlas_wsi.open_slide(path) as scene:
        viewer = show(slide_layers(scene))
        layer = viewer.layers[0]
        assert {str(u) for u in layer.units} == {"meter"}
        a, _, west, _, e, north = scene.transform
        corner = layer.data_to_world((-0.5, -0.5))
        np.testing.assert_allclose(corner, (north, west))
        np.testing.assert_allclose(
            layer.data_to_world((9.5, 19.5)), (north + 10 * e, west + 20 * a)
        )


def test_every_layer_of_a_result_knows_it(result):
    for _, facts, _ in heatmap_layers(result):
        assert facts["metadata"][RESULT_KEY] is result


def test_painted_numbers_beyond_the_classes_are_not_saved(result, tmp_path):
    labels = np.zeros(result.grid.shape, int)
    labels[0, 0], labels[3, 3] = 2, len(result.classes) + 1
    path = str(tmp_path / "map.geojson")
    write_classes(path, labels, {"metadata": {RESULT_KEY: result}})
    (feature,) = json.loads((tmp_path / "map.geojson").read_text())["features"]
    assert feature["properties"]["classification"]["name"] == result.classes[1]


def test_a_folder_that_is_none_of_ours_is_left_to_others(tmp_path):
    assert get_reader(str(tmp_path)) is None


GIGAPIXEL = r"""
    import re, sys
    import dask
    from dask.callbacks import Callback
    from napari.components import ViewerModel
    from napari.layers import Layer
    from napari_atlas_wsi._reader import get_reader

    tasks = 0
    def count(*_):
        global tasks
        tasks += 1

    viewer = ViewerModel()
    with Callback(pretask=count):
        for layer in get_reader(sys.argv[1])(sys.argv[1]):
            viewer.add_layer(Layer.create(*layer))
        (layer,) = viewer.layers
        opened = tasks
        chunks = layer.data[0].npartitions
        # a look at 1,000 x 1,600 pixels in the middle, as a canvas asks for it
        layer.data[0][40_000:41_000, 50_000:51_600].compute()
    # not ru_maxrss: it starts at what the process held that started this one
    status = open("/proc/self/status").read()
    peak = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024
    print(layer.data[0].shape, opened, tasks, chunks, peak)
"""


@pytest.mark.slow
def test_a_slide_of_8_gigapixels_opens_without_reading_a_level(tmp_path):
    from atlas_wsi.slides.synthetic import make_svs

    path = tmp_path / "huge.svs"
    make_svs(path, shape=(80_000, 100_000), levels=5, whole_tiles=True)
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(GIGAPIXEL), str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    shape, counts = run.stdout.strip().split(") ")
    opened, tasks, chunks, peak = map(int, counts.split())
    assert shape == "(80000, 100000, 3"
    assert chunks > 20_000
    assert opened < 100
    assert tasks < 200
    assert peak < 2e9

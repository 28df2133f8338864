"""The plugin in a real window, as a person uses it: `make test-gui`."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import shapely
import tifffile
from dask.callbacks import Callback
from napari.utils.notifications import notification_manager
from PIL import Image

import atlas_wsi
from atlas_wsi.slides.synthetic_scenes import make_scene
from napari_atlas_wsi._job import work_folder
from napari_atlas_wsi._layers import SLIDE_KEY
from napari_atlas_wsi._open import open_viewer
from napari_atlas_wsi._shown import shown_in

pytestmark = pytest.mark.gui

HUGE = (80_000, 100_000)
RUN_MS = 120_000


class Tasks(Callback):
    """Counts what dask computes."""

    def __init__(self):
        self.n = 0
        super().__init__(pretask=self._count)

    def _count(self, *_):
        self.n += 1


def widget(viewer, name):
    return next(w for d, w in viewer.window.dock_widgets.items() if d.startswith(name))


@pytest.fixture(autouse=True)
def told():
    """What was told as notifications."""
    notification_manager.records.clear()
    return notification_manager.records


@pytest.fixture(scope="session")
def huge_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("huge") / "huge.svs"
    # in a process of its own: the peak of this one is what a person has with the window
    options = f"{HUGE}, levels=5, whole_tiles=True"
    make = f"from atlas_wsi.slides.synthetic import make_svs; make_svs({str(path)!r}, {options})"
    subprocess.run([sys.executable, "-c", make], check=True)
    return path


@pytest.fixture
def window(qtbot, request, monkeypatch, tmp_path):
    """Opens a slide, and its result, as `atlas-wsi view` does."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    opened = []

    def open_window(*paths):
        viewer = open_viewer(*map(str, paths))
        opened.append(viewer)
        predict = widget(viewer, "Predict")
        predict.add_model("atlas_test")
        qtbot.waitUntil(lambda: "atlas_test" in predict.card.text(), timeout=30_000)
        return viewer

    yield open_window
    for viewer in opened:
        viewer.close()
        qtbot.wait(50)


def finish(qtbot, panel):
    qtbot.waitUntil(lambda: not panel.is_running, timeout=RUN_MS)


def draw(viewer, kind, corners):
    layer = viewer.add_shapes(
        [np.array(corners, float)],
        shape_type=kind,
        name="drawn",
        units=viewer.layers[0].units,
        axis_labels=("y", "x"),
        edge_width=50,
        face_color="transparent",
    )
    predict = widget(viewer, "Predict")
    predict.scope_box.setCurrentText("drawn areas")
    assert predict.shapes_box.currentData() is layer
    return layer


# As a person has it: this process holds the test runner and all that other tests imported.
PREDICT = """
    import re, sys, time
    import numpy as np
    from qtpy.QtWidgets import QApplication
    from napari_atlas_wsi._open import open_viewer

    viewer = open_viewer(sys.argv[1])
    predict = next(w for d, w in viewer.window.dock_widgets.items() if d.startswith("Predict"))
    predict.add_model("atlas_test")
    corners = np.array([(20e3, 25e3), (20e3, 27e3), (21.5e3, 27e3), (21.5e3, 25e3)])
    viewer.add_shapes([corners], shape_type="rectangle", units=viewer.layers[0].units,
                      axis_labels=("y", "x"))
    predict.scope_box.setCurrentText("drawn areas")
    predict.start()
    while predict.is_running:
        QApplication.processEvents()
        time.sleep(0.01)
    assert predict.shown is not None, predict.status.text()
    status = open("/proc/self/status").read()
    for key in ("VmHWM", "RssFile"):
        print(key, int(re.search(key + r":\\s+(\\d+)", status)[1]) * 1024)
    viewer.close()
"""


def test_predicting_in_a_huge_slide_takes_less_than_two_gigabytes(huge_path):
    code = textwrap.dedent(PREDICT)
    run = subprocess.run(
        [sys.executable, "-c", code, str(huge_path)], capture_output=True, text=True, check=True
    )
    peak = int(re.search(r"VmHWM (\d+)", run.stdout)[1])
    # Pages of the libraries' files are no memory that is taken: how many of them a fault maps, and
    # so counts, is up to the kernel.
    mapped = int(re.search(r"RssFile (\d+)", run.stdout)[1])
    assert 3e8 < peak - mapped < 2e9, (peak, mapped)


def test_a_huge_slide_is_predicted_where_a_rectangle_was_drawn(qtbot, window, huge_path, tmp_path):
    with Tasks() as tasks:
        viewer = window(huge_path)
        slide_layer = viewer.layers[0]
        qtbot.waitUntil(lambda: slide_layer.loaded, timeout=30_000)
        viewer.screenshot(canvas_only=True, flash=False)
        # 0.5 um a pixel: 3,000 x 4,000 px in the middle of the slide
        draw(viewer, "rectangle", [(20e3, 25e3), (20e3, 27e3), (21.5e3, 27e3), (21.5e3, 25e3)])
        predict = widget(viewer, "Predict")
        predict.start()
        finish(qtbot, predict)
    assert slide_layer.data[0].npartitions > 20_000
    assert tasks.n < 2_000  # a look at the coarsest levels, and the rectangle

    (shown,) = shown_in(viewer)
    result = shown.heatmap
    rows, cols = np.nonzero(np.isfinite(result.probabilities[0]))
    step = result.grid.step_px[0]
    assert 40_000 - step <= rows.min() * step
    assert (rows.max() + 1) * step <= 43_000 + step
    assert 50_000 - step <= cols.min() * step
    assert (cols.max() + 1) * step <= 54_000 + step
    names = [layer.name for layer in viewer.layers]
    assert names == ["huge", "drawn", "huge: tissue", "huge: classes", "huge: red"]
    probability = viewer.layers[-1]
    np.testing.assert_array_equal(probability.data, result.probabilities[0].astype(np.float32))

    row, col = rows[len(rows) // 2], cols[len(rows) // 2]
    y, x = (row + 0.5) * step, (col + 0.5) * step
    status = probability.get_status(shown.frame.to_world(y, x), world=True)["coordinates"]
    best = int(result.probabilities[:, row, col].argmax())
    assert status == (
        f"{result.classes[best]} {result.probabilities[best, row, col]:.2f} "
        f"at y {y * 0.5:.0f}, x {x * 0.5:.0f} um"
    )

    panel = widget(viewer, "Heatmap")
    assert [panel.table.item(k, 0).text() for k in range(3)] == ["red", "green", "blue"]
    area = result.areas()["green"]
    assert panel.table.item(1, 1).text() == f"{area:.3g} mm²"
    panel.table.selectRow(1)
    assert probability.name == "huge: green"
    np.testing.assert_array_equal(probability.data, result.probabilities[1].astype(np.float32))

    out = tmp_path / "areas.csv"
    panel.export("areas", out)
    with out.open() as file:
        table = {row["class"]: row for row in csv.DictReader(file)}
    assert float(table["green"]["area_mm2"]) == pytest.approx(area, rel=1e-5)
    panel.save(tmp_path)
    assert atlas_wsi.open_result(tmp_path / "huge").areas() == pytest.approx(result.areas())


def test_a_run_is_cancelled_shows_what_it_had_and_goes_on(qtbot, window, huge_path):
    viewer = window(huge_path)
    draw(viewer, "polygon", [(16e3, 20e3), (16e3, 25e3), (21e3, 25e3), (21e3, 21e3)])
    predict = widget(viewer, "Predict")
    predict.start()
    qtbot.waitUntil(lambda: predict.shown is not None, timeout=RUN_MS)
    run, shown = predict.job, predict.shown
    assert np.isfinite(shown.layer("probability").data).any()  # it grows while the run goes on
    predict.cancel_button.click()
    assert run.wait(5)
    finish(qtbot, predict)
    assert predict.status.text() == "Stopped. 'Predict' resumes it."
    assert run.result is None
    assert predict.run_button.isEnabled()
    kept = work_folder(run.slide)
    assert sum(file.stat().st_size for file in kept.rglob("*")) > 0

    predict.start()
    finish(qtbot, predict)
    assert predict.shown.heatmap.run.parameters["windows"] == run.total
    assert not kept.exists()


def test_what_cannot_be_done_is_told_with_what_to_do(qtbot, window, huge_path, told, tmp_path):
    viewer = window(huge_path)
    predict = widget(viewer, "Predict")
    predict.scope_box.setCurrentText("drawn areas")
    predict.start()
    assert "Add a Shapes layer" in told[-1].message
    predict.scope_box.setCurrentText("tissue")
    predict.device.setCurrentText("cuda:77")
    predict.start()
    finish(qtbot, predict)
    assert "cuda" in told[-1].message
    assert predict.run_button.isEnabled()
    make_scene(tmp_path / "scene.tif", shape=(300, 400))
    with pytest.raises(atlas_wsi.errors.SlideError, match="cannot share a window"):
        viewer.open(str(tmp_path / "scene.tif"), plugin="atlas-wsi")


def test_samples_of_16_bit_are_predicted_once_black_and_white_are_given(
    qtbot, window, slide_path, told, tmp_path
):
    with atlas_wsi.open_slide(slide_path) as slide:
        pixels = slide.read_region(0, 0, 600, 800, mpp=0.5).astype(np.uint16) * 10
    path = tmp_path / "deep.tif"
    tifffile.imwrite(
        path,
        pixels,
        photometric="rgb",
        tile=(256, 256),
        resolution=(20000, 20000),
        resolutionunit="CENTIMETER",
    )
    predict = widget(window(path), "Predict")
    predict.scope_box.setCurrentText("whole slide")
    predict.start()
    finish(qtbot, predict)
    assert "--scale" in predict.status.text()
    predict.scale.setText("0;2550")
    predict.start()
    assert "two numbers" in told[-1].message
    predict.scale.setText("0, 2550")
    predict.start()
    finish(qtbot, predict)
    assert predict.shown is not None, predict.status.text()
    assert predict.status.text().startswith("Done")


@pytest.fixture
def predicted(qtbot, window, slide_path):
    viewer = window(slide_path)
    predict = widget(viewer, "Predict")
    predict.start()
    finish(qtbot, predict)
    return viewer


def test_sliders_act_at_once(predicted):
    panel = widget(predicted, "Heatmap")
    shown = panel.shown
    plane = shown.heatmap.probabilities[shown.index].astype(np.float32)
    middle = float(np.nanmedian(plane))
    panel.threshold.setValue(round(100 * middle))
    drawn = shown.layer("probability").data
    np.testing.assert_array_equal(np.isfinite(drawn), plane >= shown.threshold)
    sure = shown.heatmap.areas(threshold=shown.threshold)
    assert panel.table.item(0, 3).text() == f"{sure['red']:.3g} mm²"
    panel.opacity.setValue(20)
    assert shown.layer("probability").opacity == pytest.approx(0.2)
    panel.threshold.setValue(0)
    np.testing.assert_array_equal(shown.layer("probability").data, plane)


def test_the_camera_walks_from_hot_spot_to_hot_spot(predicted):
    panel = widget(predicted, "Heatmap")
    plane = panel.shown.heatmap.probabilities[0].astype(np.float32)
    for share in np.linspace(0.5, 0.99, 50):  # a class in several places
        panel.threshold.setValue(int(100 * np.nanquantile(plane, share)))
        spots = panel.shown.hot_spots(panel.shown.threshold)
        if len(spots) > 1:
            break
    assert len(spots) > 1
    assert [s.mass for s in spots] == sorted((s.mass for s in spots), reverse=True)
    seen = []
    for _ in spots:
        panel.next.click()
        seen.append(tuple(predicted.scene.camera.center[-2:]))
    assert seen == [pytest.approx(spot.center) for spot in spots]
    row, col = (
        int(v // s)
        for v, s in zip(
            panel.shown.frame.to_level0(seen[0]), panel.shown.heatmap.grid.step_px, strict=True
        )
    )
    around = plane[max(0, row - 3) : row + 4, max(0, col - 3) : col + 4]
    assert np.nanmax(around) >= panel.shown.threshold
    panel.previous.click()
    assert predicted.scene.camera.center[-2:] == pytest.approx(spots[-2].center)


def test_corrections_are_saved_as_annotations_to_train_on(predicted, tmp_path, told):
    panel = widget(predicted, "Heatmap")
    path = tmp_path / "corrections.geojson"
    panel.export("corrections", path)
    assert "The class map was not changed" in told[-1].message
    assert not path.exists()

    layer = panel.shown.layer("classes")
    rows, cols = np.nonzero(layer.data > 0)
    cell = (int(rows[0]), int(cols[0]))
    name, label = ("blue", 3) if layer.data[cell] != 3 else ("red", 1)
    panel.correct_box.setCurrentText(name)
    panel.correct_button.click()
    assert (layer.mode, layer.selected_label, layer.visible) == ("paint", label, True)
    layer.brush_size = 1
    layer.paint(cell, label)
    panel.threshold.setValue(90)  # drawing anew keeps what was painted
    panel.threshold.setValue(0)
    panel.export("corrections", path)
    (feature,) = json.loads(path.read_text())["features"]
    assert feature["properties"]["classification"]["name"] == name
    step = panel.shown.heatmap.grid.step_px
    y, x = ((k + 0.5) * s for k, s in zip(cell, step, strict=True))
    polygon = shapely.from_geojson(json.dumps(feature["geometry"]))
    assert polygon.contains(shapely.Point(x, y))
    assert polygon.area <= 1.01 * step[0] * step[1]

    predicted.layers.selection.active = layer
    (written,) = predicted.layers.save(str(tmp_path / "map.geojson"), selected=True)
    names = {
        f["properties"]["classification"]["name"]
        for f in json.loads(Path(written).read_text())["features"]
    }
    assert name in names


def test_drawn_annotations_are_saved_with_their_class_and_place(predicted, tmp_path):
    panel = widget(predicted, "Heatmap")
    panel.table.selectRow(1)
    layer = panel.annotate()
    layer.add_polygons([np.array([(100.0, 100.0), (100.0, 300.0), (250.0, 300.0)])])
    predicted.layers.selection.active = layer
    (path,) = predicted.layers.save(str(tmp_path / "drawn.geojson"), selected=True)
    with atlas_wsi.open_slide(layer.metadata[SLIDE_KEY].path) as slide:
        (feature,) = json.loads(Path(path).read_text())["features"]
        assert feature["properties"]["classification"]["name"] == "green"
        polygon = shapely.from_geojson(json.dumps(feature["geometry"]))
        # micrometers of the viewer are pixels of 0.5 um, corner to corner half a pixel off
        assert polygon.bounds == pytest.approx((200.5, 200.5, 600.5, 500.5))
        assert slide.mpp == (0.5, 0.5)


def test_the_coarse_scale_view_shows_what_the_cell_under_the_cursor_attends_to(predicted, qtbot):
    panel = widget(predicted, "Coarse scales")
    shown = shown_in(predicted)[-1]
    rows, cols = np.nonzero(np.isfinite(shown.heatmap.probabilities[0]))
    step = shown.heatmap.grid.step_px
    y, x = (rows[0] + 0.5) * step[0], (cols[0] + 0.5) * step[1]
    expected = shown.heatmap.context.attention(y, x)
    panel.follow.setChecked(True)
    n_layers = len(predicted.layers)
    panel.request(shown.frame.to_world(y, x))
    qtbot.waitUntil(lambda: len(predicted.layers) == n_layers + 1, timeout=30_000)
    layer = predicted.layers[-1]
    np.testing.assert_allclose(layer.data, expected[0].weights, atol=1e-6)
    assert layer.units == predicted.layers[0].units
    corner = np.array(layer.data_to_world((-0.5, -0.5)))
    np.testing.assert_allclose(corner, shown.frame.to_world(*expected[0].grid.origin_px))
    share = expected[0].weights.sum()
    assert f"scale 1 ({expected[0].grid.step_px[0]:.0f} px per token) {share:.0%}" in (
        panel.fractions.text()
    )
    panel.request(shown.frame.to_world((rows[-1] + 0.5) * step[0], (cols[-1] + 0.5) * step[1]))
    other = shown.heatmap.context.attention((rows[-1] + 0.5) * step[0], (cols[-1] + 0.5) * step[1])
    qtbot.waitUntil(
        lambda: (
            layer.data.shape == other[0].weights.shape
            and np.allclose(layer.data, other[0].weights, atol=1e-6)
        ),
        timeout=30_000,
    )
    assert len(predicted.layers) == n_layers + 1
    panel.follow.setChecked(False)


def test_the_picture_of_the_view_has_legend_and_slide(predicted, tmp_path):
    panel = widget(predicted, "Heatmap")
    panel.shown.layer("classes").visible = True
    path = tmp_path / "view.png"
    panel.export("view", path)
    picture = np.asarray(Image.open(path).convert("RGB"))
    canvas = predicted.canvas.size
    assert picture.shape[0] >= canvas[0]
    assert picture.shape[1] > canvas[1] + 200
    legend = picture[:, canvas[1] + 40 :].reshape(-1, 3)
    for color in panel.shown.heatmap.colors:
        rgb = [int(color[k : k + 2], 16) for k in (1, 3, 5)]
        assert (legend == rgb).all(axis=1).any(), color
    assert [p.name for p in tmp_path.glob("*view*")] == ["view.png"]
    assert not list(tmp_path.glob(".*"))


def test_a_result_on_disk_is_opened_beside_its_slide(window, slide_path, result_folder, result):
    viewer = window(slide_path, result_folder)
    panel = widget(viewer, "Heatmap")
    assert panel.shown.heatmap.classes == result.classes
    context = widget(viewer, "Coarse scales")
    context.request((100.0, 100.0))
    assert context.fractions.text().startswith("Predict in this window first")
    info = widget(viewer, "Slide")
    facts = {info.table.item(k, 0).text(): info.table.item(k, 1).text() for k in range(5)}
    assert facts["size"].startswith("2200 x 1500 px")
    probability = panel.shown.layer("probability")
    row, col = np.argwhere(result.argmax() >= 0)[0]
    world = probability.data_to_world((row, col))
    assert " um" in probability.get_status(world, world=True)["value"]


def test_a_scene_lies_on_the_map_with_north_up(window, tmp_path):
    make_scene(tmp_path / "scene.tif", shape=(600, 800))
    viewer = window(tmp_path / "scene.tif")
    assert tuple(str(v) for v in viewer.scene.camera.orientation2d) == ("up", "right")
    assert {str(u) for u in viewer.layers[0].units} == {"meter"}

from __future__ import annotations

import pickle

import numpy as np
import pytest
from pydantic import ValidationError

from atlas_wsi.heatmap.heatmap import Heatmap
from atlas_wsi.heatmap.records import SlideInfo


def test_the_most_probable_class_wins_and_glass_has_none(make_heatmap) -> None:
    winner = np.array([[0, 1, -1], [2, 2, 0]])
    np.testing.assert_array_equal(make_heatmap(winner=winner).argmax(), winner)


def test_a_result_gives_the_same_classes_after_it_was_stored_in_half_precision(
    make_heatmap,
) -> None:
    close = np.full((2, 40, 40), 0.5, np.float32)
    close[1] += np.linspace(-1e-4, 1e-4, 1600, dtype=np.float32).reshape(40, 40)
    made = make_heatmap((40, 40), n_classes=2)
    fields = {name: getattr(made, name) for name in Heatmap.__slots__}
    full = Heatmap(**{**fields, "probabilities": close})
    half = Heatmap(**{**fields, "probabilities": close.astype(np.float16)})
    np.testing.assert_array_equal(full.argmax(), half.argmax())


def test_areas_are_square_millimeters_of_the_slide_only(make_heatmap) -> None:
    # 2 x 2 cells of 64 px = 32 um; the slide ends in the middle of the second row and column.
    winner = np.array([[0, 1], [1, -1]])
    result = make_heatmap(winner=winner, n_classes=2, slide_shape=(96, 96))
    assert result.area_unit == "mm2"
    assert result.areas() == pytest.approx({"tumor": 32e-3**2, "stroma": 32e-3**2})


def test_areas_of_a_scene_are_square_meters(make_heatmap) -> None:
    result = make_heatmap(winner=np.zeros((2, 2), int), n_classes=1, is_scene=True)
    rows, cols = result.slide.shape
    assert result.area_unit == "m2"
    assert result.areas() == pytest.approx({"tumor": rows * cols * 100})


def test_a_cell_is_as_large_as_its_pixels(make_heatmap) -> None:
    assert make_heatmap(step=(64, 32), mpp=(0.5, 0.25)).mpp == (32, 8)


def test_results_cross_processes(heatmap: Heatmap) -> None:
    copy = pickle.loads(pickle.dumps(heatmap))
    np.testing.assert_array_equal(copy.probabilities, heatmap.probabilities)
    assert copy.slide == heatmap.slide


def test_arrays_that_do_not_fit_their_grid_are_refused(heatmap: Heatmap) -> None:
    fields = {name: getattr(heatmap, name) for name in Heatmap.__slots__}
    with pytest.raises(ValueError, match=r"expected floats \(3, 30, 40\)"):
        Heatmap(**{**fields, "probabilities": heatmap.probabilities[:2]})
    with pytest.raises(ValueError, match="2 colors"):
        Heatmap(**{**fields, "colors": heatmap.colors[:2]})


def test_a_slide_without_size_or_resolution_is_refused() -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        SlideInfo(name="a", path="a", shape=(0, 5), mpp=(0.5, 0.5))
    with pytest.raises(ValidationError, match="finite"):
        SlideInfo(name="a", path="a", shape=(5, 5), mpp=(float("nan"), 0.5))

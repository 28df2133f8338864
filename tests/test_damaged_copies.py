"""Damaged copies and cuts of synthetic files: nothing unread has a class, nothing else changes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from atlas_wsi.slides.synthetic import make_svs
from atlas_wsi.slides.synthetic_scenes import make_scene

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import cuts
import damage


@pytest.mark.parametrize("kind", ["svs", "zarr", "geotiff"])
def test_damage_stays_where_it_is(tmp_path, kind):
    path = tmp_path / ("scene.tif" if kind == "geotiff" else "slide.svs")
    if kind == "geotiff":
        make_scene(path, shape=(768, 1024))
    else:
        make_svs(path, shape=(1024, 1024), mpp=0.5)
    seen = damage.run(path, as_zarr=kind == "zarr", variants=4, seed=1, side=768)
    assert seen["refused"] + seen["complete"] + seen["incomplete"] == 4
    assert seen["cells"] > 0
    assert (seen["errors"], seen["empty"], seen["alone"]) == (0, 0, 0)


def test_cuts_of_a_scene_have_the_same_input(tmp_path):
    make_scene(tmp_path / "scene.tif", shape=(1152, 1152))
    row = cuts.compare(tmp_path / "scene.tif", tmp_path, "atlas_test")
    n_input, n_windows, n_alone, n_cells = (int(n) for n in row[2:6])
    assert (n_input, n_alone) == (0, 0)
    assert n_windows > 0
    assert n_cells > 1000
